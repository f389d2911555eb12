"""The way into a running instance: which node to dial, as whom, and by which key we know that it is the right one."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from marketplace.cli import words
from marketplace.cli.connection import login_path
from marketplace.cli.instances import find_instance
from marketplace.cli.problems import Problem, problem
from marketplace.cli.session import Session
from marketplace.cli.terminal import printable

CONFLICT = 409

Replica = Annotated[int | None, typer.Option(metavar="N", min=0, help="Which replica.", show_default="the first")]
Identity = Annotated[
    Path | None,
    typer.Option("--identity", "-i", metavar="FILE", help="Your private key; without it, ssh's own choice.",
                 show_default=False),
]  # fmt: skip


def open_door(session: Session, name: str, *, replica: int | None) -> dict[str, Any]:
    """Return how a replica is reached by SSH; raise the problem of one that is not."""
    found = find_instance(session, name)
    access = [one for one in found["access"] if replica in {None, one["replica"]}]
    if not access:
        raise not_reachable(found, replica)
    door: dict[str, Any] = access[0]
    if door["ssh_port"] is None:
        raise problem(
            code="no_gateway",
            title=f"The node of {found['name']} lets nobody in by SSH.",
            status=CONFLICT,
            detail="Its operator runs it without an SSH gateway.",
            suggestion=f"Its output is there: gpumarket logs {found['name']}",
        )
    if not next(session.client.rows("/ssh-keys", project=found["project"]["id"]), None):
        raise problem(
            code="no_ssh_key",
            title=f"The project {found['project']['name']} has no SSH key, so nobody can enter.",
            status=CONFLICT,
            suggestion="Add your public key: gpumarket ssh-key add ~/.ssh/id_ed25519.pub",
        )
    return door


def not_reachable(instance: Mapping[str, Any], replica: int | None) -> Problem:
    """Return the problem of an instance, or a replica, that cannot be entered now."""
    name, phase = instance["name"], words.phase(instance)
    if instance["access"]:
        known = ", ".join(str(one["replica"]) for one in instance["access"])
        return problem(
            code="not_found", title=f"{name} has no replica {replica} that runs.", suggestion=f"There are: {known}"
        )
    return problem(
        code="wrong_state",
        title=f"{name} is {phase}; only what runs can be entered.",
        status=CONFLICT,
        suggestion=f"See where it stands: gpumarket show {name}",
    )


def ssh_options(door: Mapping[str, Any], identity: Path | None) -> list[str]:
    """Return what OpenSSH's programs are told: the host key that the marketplace knows, and nothing handed along."""
    words = {
        "UserKnownHostsFile": str(remember_host(door)),
        "GlobalKnownHostsFile": os.devnull,
        "HostKeyAlias": door["user"],
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "PasswordAuthentication": "no",
        "ForwardAgent": "no",
        "ForwardX11": "no",
    }
    options = [f"-o{name}={value}" for name, value in words.items()]
    return options if identity is None else [*options, "-oIdentitiesOnly=yes", "-i", str(identity)]


def remember_host(door: Mapping[str, Any]) -> Path:
    """Write the file by which ssh knows the node; a name of its own for each replica, so that no two calls collide."""
    folder = login_path().parent / "known_hosts"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{door['user']}"
    line = f"{door['user']} {printable(door['host_key']).splitlines()[0]}\n"
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(line, encoding="ascii")
    unfinished.replace(path)
    return path


def become(argv: Sequence[str]) -> None:
    """Turn this process into one of OpenSSH's programs, which then talks to the terminal by itself."""
    path = shutil.which(argv[0])
    if path is None:
        raise problem(
            code="no_ssh",
            title=f"The program {argv[0]} is not installed here.",
            suggestion="Install OpenSSH's client: apt-get install openssh-client, or what your system calls it.",
        )
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(path, list(argv))  # noqa: S606 - found on PATH, as a shell would
