"""Brings the image of a container to this node, and says how far that is.

Podman's command line shows no bytes, so they are measured: podman writes what it downloads into its temporary
folder, one file for each layer, and keeps it there until the image is whole. The sum of these files is what has
arrived, compressed as the registry sends it. The total is the sum of the layers in the image's manifest; None where
the registry does not tell it. Layers that are here already are in the total and never arrive.
"""

import base64
import json
import os
import re
import subprocess
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from provisioning.agent.files import remove_tree
from provisioning.agent.podman import Podman, PodmanError, reason
from provisioning.agent.protocol import Login
from provisioning.agent.workloads import Progress

LOCAL = "localhost/"
# A registry's host first, always: podman takes other beginnings for folders and archives of this machine.
NAME = re.compile(
    r"(localhost|[a-z0-9-]+(\.[a-z0-9-]+)+|[a-z0-9.-]+:[0-9]{1,5})(/[a-z0-9]+([._-]+[a-z0-9]+)*)+"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
LOOK_S = 0.25
RATE_OVER_S = 5.0
MANIFEST_S = 15.0
PLATFORM = ("linux", {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine))


def for_podman(image: str) -> str:
    """Return an image as podman takes it: it refuses a tag beside a digest, which says all.

    >>> for_podman("registry.example.com:5000/a:1@sha256:00"), for_podman("registry.example.com:5000/a:1")
    ('registry.example.com:5000/a@sha256:00', 'registry.example.com:5000/a:1')
    """
    name, at, digest = image.partition("@")
    host, slash, path = name.partition("/")
    return f"{host}{slash}{path.partition(':')[0]}@{digest}" if at else image


class Aborted(Exception):
    """Nobody wants this image any more."""


class Pull:
    """One pull. `progress` may be read, and `abort` called, by any thread while `run` is under way."""

    def __init__(self, podman: Podman, image: str, *, login: Login | None, folder: Path) -> None:
        self._podman = podman
        self._image = image
        self._login = login
        self._folder = folder
        self._aborted = threading.Event()
        self._arrived: deque[tuple[float, int]] = deque()
        self._total: int | None = None
        self.progress = Progress("pull", 0, None, 0)

    def abort(self) -> None:
        """Make `run` raise Aborted soon."""
        self._aborted.set()

    def run(self) -> None:
        """Return when the image is here. Raises PodmanError, Aborted, OSError."""
        auth = authfile(self._login) if self._login else None
        scratch = Path(tempfile.mkdtemp(prefix="pull-", dir=self._folder))
        try:
            words = [] if auth is None else ["--authfile", f"/proc/self/fd/{auth}"]
            fds = () if auth is None else (auth,)
            asking = threading.Thread(target=self._ask_for_total, args=(words, fds), daemon=True)
            asking.start()
            self._pull(words, fds, scratch)
            asking.join()
        finally:
            remove_tree(scratch)
            if auth is not None:
                os.close(auth)

    def _pull(self, words: list[str], fds: tuple[int, ...], scratch: Path) -> None:
        with tempfile.TemporaryFile(dir=scratch) as said:
            pulling = subprocess.Popen(  # noqa: S603
                ["podman", "pull", *words, "--quiet", f"docker://{self._image}"],  # noqa: S607
                env=self._podman.env | {"TMPDIR": str(scratch)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=fds,
            )
            while pulling.poll() is None:
                if self._aborted.wait(LOOK_S):
                    pulling.kill()
                    pulling.wait()
                    raise Aborted
                self._measure(scratch)
            if pulling.returncode:
                said.seek(0)
                raise PodmanError(reason(said.read()) or f"podman pull ended with {pulling.returncode}")

    def _measure(self, scratch: Path) -> None:
        done = sum(size_of(Path(folder, name)) for folder, _, names in os.walk(scratch) for name in names)
        now = time.monotonic()
        done = max(done, self.progress.done_bytes)
        self._arrived.append((now, done))
        while now - self._arrived[0][0] > RATE_OVER_S:
            self._arrived.popleft()
        since, before = self._arrived[0]
        rate = round((done - before) / (now - since)) if now > since else 0
        self.progress = Progress("pull", done, self._total, rate)

    def _ask_for_total(self, words: list[str], fds: tuple[int, ...]) -> None:
        try:
            manifest = self._manifest(words, fds, self._image)
            if "manifests" in manifest:
                platform = {"os": PLATFORM[0], "architecture": PLATFORM[1]}
                chosen = next(one for one in manifest["manifests"] if platform.items() <= one["platform"].items())
                name = self._image.partition("@")[0]
                tagged = name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name
                manifest = self._manifest(words, fds, f"{tagged}@{chosen['digest']}")
            self._total = sum(layer["size"] for layer in manifest["layers"])
        except (PodmanError, ValueError, KeyError, TypeError, StopIteration):
            self._total = None  # Not every registry tells; the pull itself will say what is wrong.

    def _manifest(self, words: list[str], fds: tuple[int, ...], image: str) -> Any:
        said = self._podman.run("manifest", "inspect", *words, image, timeout_s=MANIFEST_S, pass_fds=fds)
        return json.loads(said)


def authfile(login: Login) -> int:
    """Return a file for podman that has no name: it is on no disk, and goes with the processes that hold it."""
    token = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
    handle = os.memfd_create("auth")
    os.write(handle, json.dumps({"auths": {login.host: {"auth": token}}}).encode())
    return handle


def size_of(path: Path) -> int:
    """Return the size of a file that may be gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
