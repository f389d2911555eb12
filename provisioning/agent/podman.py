"""Speaks with podman through its command line. Nothing here knows assignments."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What podman may know of the agent's own environment. The rest stays with the agent: its join token, for one.
ENVIRONMENT = frozenset(
    {
        *("PATH", "HOME", "LANG", "XDG_RUNTIME_DIR", "TMPDIR"),
        *("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF", "CONTAINERS_REGISTRIES_CONF", "REGISTRY_AUTH_FILE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    }
)
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
REASON_MAX = 600
SLOW_S = 120.0


class PodmanError(Exception):
    """Podman refused or failed; the message is its own reason."""


class Podman:
    """One podman, with one configuration. Every call is a process of its own and may be killed at any time."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)

    @classmethod
    def here(cls, *, config: str | None = None) -> "Podman":
        """Return the podman of this machine, as the agent's environment and `config` (a containers.conf) say."""
        env = {"PATH": SYSTEM_PATH} | {name: value for name, value in os.environ.items() if name in ENVIRONMENT}
        return cls(env | ({"CONTAINERS_CONF": config} if config else {}))

    def run(
        self,
        *words: str,
        timeout_s: float = SLOW_S,
        pass_fds: Sequence[int] = (),
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        cwd: Path = Path("/"),
    ) -> str:
        """Run one command; return what it says, where nobody else gets that. Raises PodmanError."""
        try:
            done = subprocess.run(  # noqa: S603  arguments, no shell
                ("podman", *words),  # noqa: S607  where it is differs between distributions
                env=self.env,
                stdin=subprocess.DEVNULL,
                timeout=timeout_s,
                check=False,
                pass_fds=pass_fds,
                cwd=cwd,
                stdout=stdout,
                stderr=stderr,
            )
        except subprocess.TimeoutExpired as error:
            raise PodmanError(f"podman {words[0]} did not end within {timeout_s:.0f} s") from error
        except OSError as error:
            raise PodmanError(f"cannot run podman: {error.strerror}") from error
        if done.returncode:
            raise PodmanError(reason(done.stderr or b"") or f"podman {words[0]} ended with {done.returncode}")
        return (done.stdout or b"").decode(errors="replace")

    def ask(self, *words: str) -> Any:
        """Return the JSON that a command prints. Raises PodmanError."""
        try:
            return json.loads(self.run(*words))
        except ValueError as error:
            raise PodmanError(f"podman {words[0]} did not answer with JSON") from error

    def find(self, name: str) -> Any:
        """Return what podman knows of a container, or None where there is none. Raises PodmanError."""
        try:
            return self.ask("container", "inspect", name)[0]
        except PodmanError as error:
            if "no such container" in str(error).lower() or "no container with name" in str(error).lower():
                return None
            raise


def reason(said: bytes) -> str:
    """Return why podman failed, without the words around it."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error: ")]
    return (errors or lines or [""])[-1].removeprefix("Error: ")[:REASON_MAX]
