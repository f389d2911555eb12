"""Who dials in: OpenSSH's own programs with a key, and a node with a gateway to dial."""

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import psutil

from tests.provisioning.agent.cast import AgentRun, eventually, processes_of
from tests.provisioning.agent.control_plane import ControlPlane

GATEWAY = ("--ssh-port", "0", "--ssh-listen", "127.0.0.1", "--ssh-address", "127.0.0.1")


@dataclass(frozen=True)
class Key:
    """A key pair in a file, as ssh-keygen leaves it."""

    file: Path
    public: str
    fingerprint: str


def make_key(folder: Path, name: str) -> Key:
    key = asyncssh.generate_private_key("ssh-ed25519")
    file = folder / name
    file.touch(mode=0o600)
    key.write_private_key(str(file))
    return Key(file, key.export_public_key().decode().strip(), key.get_fingerprint())


@dataclass
class Door:
    """A node with a gateway, and what runs there for whoever holds the key."""

    plane: ControlPlane
    agent: AgentRun
    key: Key
    stranger: Key
    folder: Path
    home: Path

    @property
    def access(self) -> dict[str, Any]:
        report = next(one for one in reversed(self.plane.reports) if one.get("inventory"))
        return report["inventory"]["access"]

    def stop(self, *names: str) -> None:
        """End instances, and wait until nothing of them is left."""
        for name in names or tuple(self.plane.desired):
            self.plane.want(name, "gone")
        eventually(lambda: all(self.plane.view(name)["state"] == "gone" for name in names or self.plane.desired))

    @property
    def work(self) -> Path:
        return self.home / "workloads" / "asg_a" / "work"

    def options(self, key: Key | None = None) -> list[str]:
        """What OpenSSH is told: this key, this host key, and no question to anybody."""
        known = self.folder / "known_hosts"
        known.write_text(f"node {self.access['host_key']}\n")
        words = {
            "UserKnownHostsFile": str(known),
            "HostKeyAlias": "node",
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        given = [f"-o{name}={value}" for name, value in words.items()]
        return ["-F", "none", *given, "-i", str((key or self.key).file)]

    def command(
        self, *words: str, user: str = "ins_demo", key: Key | None = None, options: tuple[str, ...] = ()
    ) -> Any:
        return [
            "ssh", *self.options(key), *options, "-p", str(self.access["ssh_port"]), f"{user}@127.0.0.1", *words
        ]  # fmt: skip

    def ssh(self, *words: str, stdin: bytes = b"", **more: Any) -> "subprocess.CompletedProcess[bytes]":
        """Run OpenSSH's client to its end."""
        return subprocess.run(self.command(*words, **more), input=stdin, capture_output=True, timeout=30, check=False)

    def copy(self, source: str, target: str, *options: str) -> "subprocess.CompletedProcess[bytes]":
        """Run OpenSSH's scp; `there:` stands for the instance."""
        names = [name.replace("there:", "ins_demo@127.0.0.1:") for name in (source, target)]
        words = ["scp", *self.options(), "-P", str(self.access["ssh_port"]), *options, *names]
        return subprocess.run(words, capture_output=True, timeout=60, check=False)

    def sftp(self, *lines: str, user: str = "ins_demo") -> "subprocess.CompletedProcess[bytes]":
        """Run OpenSSH's sftp with a batch; a line that fails ends it."""
        words = ["sftp", *self.options(), "-P", str(self.access["ssh_port"]), "-b", "-", f"{user}@127.0.0.1"]
        batch = "\n".join(lines).encode() + b"\n"
        return subprocess.run(words, input=batch, capture_output=True, timeout=60, check=False)

    async def connect(self, *, key: Key | None = None, user: str = "ins_demo", **more: Any) -> Any:
        """Connect with asyncssh, which can do what OpenSSH's client does not."""
        access = self.access
        options = {
            "known_hosts": ([asyncssh.import_public_key(access["host_key"])], [], []),
            "client_keys": [str((key or self.key).file)],
            "agent_path": None,
            "config": [],
            "username": user,
        }
        return await asyncssh.connect("127.0.0.1", access["ssh_port"], **options | more)

    def sessions(self, action: str) -> list[dict[str, Any]]:
        """What the node told of its sessions."""
        return [event["body"] for event in self.plane.events if event["body"].get("action") == action]

    def run(self, assignment: str = "asg_a", /, **changes: Any) -> None:
        """Have an instance run that lets the key in."""
        given: dict[str, Any] = {"ssh_keys": [f"{self.key.public} laptop"], "name": "quiet-otter", "lease_s": 60}
        self.plane.want(assignment, "running", **given | changes)
        eventually(lambda: self.plane.view(assignment)["state"] == "running")


@contextmanager
def a_door(folder: Path, *options: str, **changes: Any) -> Iterator[Door]:
    """Have a node with a gateway, and an instance there that is gone at the end."""
    plane, home = ControlPlane(), folder / "home"
    agent = AgentRun(home, plane.url, *GATEWAY, *options)
    door = Door(plane, agent, make_key(folder, "key"), make_key(folder, "stranger"), folder, home)
    try:
        door.run(**{"stop_grace_s": 0} | changes)
        yield door
        if door.agent.process.poll() is None:
            door.stop()
    finally:
        door.agent.kill()
        plane.close()
        for process in processes_of(home):
            with contextlib.suppress(psutil.Error):
                process.kill()
