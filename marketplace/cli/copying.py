"""Files into and out of an instance: scp, told where to go."""

import re
from typing import Annotated, Any

import typer

from marketplace.cli.doors import Identity, Replica, become, open_door, ssh_options
from marketplace.cli.problems import usage
from marketplace.cli.session import AsJson, Explain, open_session

# A name or an id before the colon; one letter alone is a drive of Windows.
THERE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_-]+):(.*)", re.DOTALL)


def cp(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file here, or INSTANCE:PATH.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The other side.", show_default=False)],
    *,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Copy folders with all that is in them.")
    ] = False,
    replica: Replica = None,
    identity: Identity = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Copy files into a running instance or out of it. Paths there begin in its working folder."""
    sides = [THERE.fullmatch(side) for side in (source, target)]
    if (sides[0] is None) == (sides[1] is None):
        raise usage(
            "One side is a file here, the other is in an instance.",
            suggestion="For example: gpumarket cp data.tar box:data.tar, or gpumarket cp box:model.pt .",
        )
    name = next(side.group(1) for side in sides if side is not None)
    with open_session(as_json=as_json, explain=explain) as session:
        door = open_door(session, name, replica=replica)
        words = [there(door, side.group(2)) if side else here(given)
                 for side, given in zip(sides, (source, target), strict=True)]  # fmt: skip
        argv = ["scp", *ssh_options(door, identity), "-P", str(door["ssh_port"])]
        argv += ["-r"] if recursive else []
        argv += ["-q"] if not session.terminal.moves else []
        if as_json:
            session.terminal.document({**door, "argv": [*argv, "--", *words]})
            return
    become([*argv, "--", *words])


def there(door: dict[str, Any], path: str) -> str:
    """Return scp's words for a file in the instance."""
    host = f"[{door['host']}]" if ":" in door["host"] else door["host"]
    return f"{door['user']}@{host}:{path}"


def here(path: str) -> str:
    """Return scp's words for a file of ours, which it must not take for another machine's."""
    return f"./{path}" if ":" in path.split("/", maxsplit=1)[0] else path
