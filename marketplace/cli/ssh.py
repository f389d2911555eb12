"""Into an instance by SSH: a shell, a command, a port."""

import shlex
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from marketplace.cli.doors import Identity, Replica, become, not_reachable, open_door, ssh_options
from marketplace.cli.instances import find_instance
from marketplace.cli.orders import COMMAND
from marketplace.cli.problems import usage
from marketplace.cli.session import AsJson, Explain, InstanceName, open_session

PORT_MAX = 65535


class MayTakeCommand(TyperCommand):
    """A command line that may end in `-- COMMAND...`: what stands behind the dashes is the customer's, unread."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = args[: args.index("--")] if "--" in args else args
        ctx.meta[COMMAND] = args[len(own) + 1 :]
        return super().parse_args(ctx, own)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND...]"]


def ssh(
    ctx: typer.Context,
    instance: InstanceName,
    *,
    forward: Annotated[
        list[str] | None,
        typer.Option("--forward", "-L", metavar="PORT", help="Reach a port of the instance here; HERE:THERE for two "
                     "different ones. Repeat as needed.", show_default=False),
    ] = None,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give a command a terminal; a shell has one.")] = False,
    replica: Replica = None,
    identity: Identity = None,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:  # fmt: skip
    """Open a shell in a running instance, or run a command there; the exit code is the command's."""
    command = ctx.meta[COMMAND]
    with open_session(as_json=as_json, explain=explain) as session:
        door = open_door(session, instance, replica=replica)
        argv = ["ssh", *ssh_options(door, identity), "-p", str(door["ssh_port"])]
        argv += [word for ports in forward or [] for word in ("-L", forwarding(ports))]
        argv += ["-t"] if tty else []
        argv += [f"{door['user']}@{door['host']}", *remote_words(command)]
        if as_json:
            session.terminal.document({**door, "argv": argv})
            return
    become(argv)


def remote_words(command: list[str]) -> list[str]:
    """Return what ssh is given: one word is a line for the shell there, several are one program's own arguments."""
    return command if len(command) < 2 else [shlex.join(command)]


def forwarding(ports: str) -> str:
    """Return ssh's words for a port of the instance that is reached here."""
    here, _, there = ports.partition(":")
    numbers = (here, there or here)
    if not all(number.isdecimal() and 0 < int(number) <= PORT_MAX for number in numbers):
        raise usage(
            f"{ports!r} is not a port.", suggestion="Write --forward 8888, or --forward 9000:8888 to reach 8888."
        )
    return f"127.0.0.1:{numbers[0]}:localhost:{numbers[1]}"


def ports(instance: InstanceName, as_json: AsJson = False, explain: Explain = False) -> None:
    """Show where the ports of a running instance are reached, and how to reach any other."""
    with open_session(as_json=as_json, explain=explain) as session:
        found = find_instance(session, instance)
        if not found["access"]:
            raise not_reachable(found, None)
        if as_json:
            session.terminal.document({"data": found["access"], "next_cursor": None})
            return
        rows = [
            [str(door["replica"]), str(port["port"]), f"{port['host']}:{port['host_port']}"]
            for door in found["access"]
            for port in door["ports"]
        ]
        if rows:
            session.terminal.table(["REPLICA", ">PORT", "REACHED AT"], rows)
        else:
            session.terminal.say(f"{found['name']} publishes no port.")
        for door in found["access"]:
            if door["ssh_port"] is not None:
                session.terminal.say(f"Any other port of replica {door['replica']}, such as 8888:")
                session.terminal.say(f"  gpumarket ssh {found['name']} --replica {door['replica']} -L 8888")
                address = f"-p {door['ssh_port']} {door['user']}@{door['host']}"
                session.terminal.say(f"  ssh -N -L 8888:localhost:8888 {address}")
