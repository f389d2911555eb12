"""The volumes that this node keeps: one folder each, made whole or not at all, and never removed on a guess.

ROOT/vol_x          a volume; its name is all that says so
ROOT/.new-vol_x-r   one that is being made or copied; worthless until it is renamed
ROOT/.old-vol_x-r   one that is being removed

What is in a volume is a customer's data. Only the control plane's own word
`gone` removes a folder; one that nobody asked for is reported and kept; and
one that was here once and cannot be found is said to be missing, not made anew.
"""

import logging
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provisioning.agent.files import remove_tree, sync_folder
from provisioning.agent.protocol import ID, Assignment, Document, Volume

log = logging.getLogger("gpumarket.agent")

MEASURE_EVERY_S = 60.0
MEASURE_LIMIT_S = 45.0
SAY_AGAIN_S = 60.0
BLOCK_BYTES = 512  # The unit of st_blocks, whatever the file system's own is.
COPY = ("cp", "-a", "--reflink=auto", "--one-file-system", "--")
MISSING = "its folder is not on this node any more; nothing was made in its place"
DOORS = ".volumes"  # In the working folder of a process: where its links to volumes lead.
STRAY = "nobody asked for this volume; it is kept"


@dataclass(frozen=True)
class Bind:
    """A folder of this machine, and where the workload is to find it: for a container, `-v source:target`."""

    source: Path
    target: str
    name: str
    read_only: bool = False  # Kept by containers; an order for a process cannot ask for it.


class VolumeError(Exception):
    """A volume cannot be made; the message says why."""


class Volumes:
    """Keeps the folders. `step` belongs to one thread, which copies may hold up; the rest may be called by any."""

    TICK_S = 0.5

    def __init__(
        self, *, root: Path, document: Callable[[], Document], changed: Callable[[], None], is_shared: bool = False
    ) -> None:
        self.root = root
        self._document = document
        self._changed = changed
        self._is_shared = is_shared
        self._states: dict[str, dict[str, Any]] = {}
        self._used: dict[str, int | None] = {}
        self._heard: tuple[int, list[dict[str, Any]]] = (-1, [])
        self._heard_at = 0.0
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    # What a workload finds.

    def binds(self, assignment: Assignment) -> list[Bind]:
        """Return the folders that an assignment's workload has to find, and where."""
        return [Bind(self.root / one.id, one.path, one.name, one.read_only) for one in assignment.volumes]

    def why_not(self, assignment: Assignment) -> str:
        """Return which of its volumes is not here, as a reason; nothing if all are."""
        missing = [one for one in self.binds(assignment) if not one.source.is_dir()]
        return f"the volume {missing[0].name or missing[0].source.name} is not on this node" if missing else ""

    # What the control plane hears.

    def report(self) -> list[dict[str, Any]]:
        """Return what is true of each volume; nothing where the control plane has heard just this a moment ago."""
        said = [self._states[name] | {"used_bytes": self._used.get(name)} for name in sorted(self._states)]
        heard_of, heard = self._heard
        is_old = heard_of == self._document().generation and heard == said
        return [] if is_old and time.monotonic() - self._heard_at < SAY_AGAIN_S else said

    def note_heard(self, said: list[dict[str, Any]], *, generation: int) -> None:
        """Note that the control plane knows this, as of the document that we held when we said it."""
        if said:
            self._heard, self._heard_at = (generation, said), time.monotonic()

    # The work.

    def run(self, stopping: threading.Event) -> None:
        """Step until told to stop."""
        self.clear_leftovers()
        measurer = threading.Thread(target=self._measure_on, args=(stopping,), name="measure", daemon=True)
        measurer.start()
        while not stopping.is_set():
            try:
                self.step()
            except Exception:
                log.exception("a step of the volumes failed; trying again")
            stopping.wait(self.TICK_S)

    def clear_leftovers(self) -> None:
        """Remove what an agent that was killed left half made or half removed."""
        for folder in self.root.iterdir():
            if folder.name.startswith((".new-", ".old-")):
                self._try_to_remove(folder)

    def step(self) -> None:
        """Compare what is wanted with what is there, and do what is missing."""
        document = self._document()
        if not document.generation:
            return
        busy = {mount.id for one in document.assignments if one.desired != "gone" for mount in one.volumes}
        states = {
            one.id: self._step_towards_gone(one, is_busy=one.id in busy) if one.desired == "gone" else self._keep(one)
            for one in document.volumes
        }
        wanted = {one.id for one in document.volumes}
        if not self._is_shared:
            # On a shared path lie the volumes of other nodes too.
            states |= {name: entry(name, "present", STRAY) for name in self._here() if name not in wanted}
        if states != self._states:
            for name in states.keys() - self._states.keys():
                log.info("volume", extra={"volume": name} | {"state": states[name]["state"]})
            self._states = states
            self._changed()

    def _step_towards_gone(self, wanted: Volume, *, is_busy: bool) -> dict[str, Any]:
        folder = self.root / wanted.id
        if folder.exists() and is_busy:
            return entry(wanted.id, "present", "it is in use here and is not removed")
        try:
            self._remove(folder)
        except OSError as error:
            return entry(wanted.id, "present", f"it cannot be removed yet: {error.strerror}")
        return entry(wanted.id, "gone")

    def _keep(self, wanted: Volume) -> dict[str, Any]:
        folder = self.root / wanted.id
        if folder.is_dir():
            return entry(wanted.id, "present")
        if wanted.made:
            return entry(wanted.id, "failed", MISSING)
        known = self._states.get(wanted.id)
        if known is not None and known["state"] == "failed":
            return known  # It was tried; the control plane decides what follows.
        try:
            self._make(wanted)
        except (VolumeError, OSError) as error:
            log.warning("cannot make a volume", extra={"volume": wanted.id, "error": str(error)})
            return entry(wanted.id, "failed", str(error))
        return entry(wanted.id, "present")

    def _make(self, wanted: Volume) -> None:
        free = shutil.disk_usage(self.root).free
        if free < wanted.size_bytes:
            raise VolumeError(f"the disk has {free >> 30} GiB free, {wanted.size_bytes >> 30} are asked for")
        building = self.root / f".new-{wanted.id}-{secrets.token_hex(4)}"
        building.mkdir(mode=0o700)
        try:
            if wanted.source:
                self._copy(self.root / wanted.source, building)
            os.rename(building, self.root / wanted.id)
        except BaseException:
            self._try_to_remove(building)
            raise
        sync_folder(self.root)

    def _copy(self, source: Path, target: Path) -> None:
        if not source.is_dir():
            raise VolumeError("the volume that it is to be a copy of is not on this node")
        copied = subprocess.run(  # noqa: S603  our own arguments; the ids were checked
            [*COPY, f"{source}/.", str(target)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
        if copied.returncode:
            raise VolumeError(f"it could not be copied: {copied.stderr.decode(errors='replace').strip()[-300:]}")
        target.chmod(0o700)
        os.sync()

    def _remove(self, folder: Path) -> None:
        if folder.exists():
            doomed = folder.with_name(f".old-{folder.name}-{secrets.token_hex(4)}")
            folder.rename(doomed)
            sync_folder(self.root)
        for doomed in self.root.glob(f".old-{folder.name}-*"):
            remove_tree(doomed)
        self._used.pop(folder.name, None)

    def _try_to_remove(self, folder: Path) -> None:
        try:
            remove_tree(folder)
        except OSError as error:
            log.warning("cannot remove a folder; the next start tries again", extra={"error": str(error)})

    def _here(self) -> list[str]:
        return [folder.name for folder in self.root.iterdir() if is_volume(folder.name) and folder.is_dir()]

    def _measure_on(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            self.measure()
            stopping.wait(MEASURE_EVERY_S)

    def measure(self) -> None:
        """Measure every volume that we are to keep, or on a path of our own every one that is here."""
        names = [one.id for one in self._document().volumes] if self._is_shared else self._here()
        used = {name: used_bytes(self.root / name, limit_s=MEASURE_LIMIT_S) for name in names}
        if used != self._used:
            self._used = used
            self._changed()


def is_volume(name: str) -> bool:
    """Return whether a folder's name is that of a volume."""
    return name.startswith("vol_") and ID.fullmatch(name) is not None


def entry(name: str, state: str, message: str = "") -> dict[str, Any]:
    """Return the protocol's word on a volume."""
    return {"id": name, "state": state, "message": message}


def used_bytes(folder: Path, *, limit_s: float) -> int | None:
    """Return what a folder takes on the disk, hard links counted once; None where it takes too long or is not there."""
    until = time.monotonic() + limit_s
    seen: set[tuple[int, int]] = set()
    total = 0
    waiting = [str(folder)]
    while waiting:
        if time.monotonic() > until:
            return None
        here = waiting.pop()
        try:
            with os.scandir(here) as found:
                entries = list(found)
        except OSError:
            if here == str(folder):
                return None
            continue  # It went while we looked.
        for one in entries:
            try:
                facts = one.stat(follow_symlinks=False)
            except OSError:
                continue
            if facts.st_nlink > 1 and not one.is_dir(follow_symlinks=False):
                if (facts.st_dev, facts.st_ino) in seen:
                    continue
                seen.add((facts.st_dev, facts.st_ino))
            total += facts.st_blocks * BLOCK_BYTES
            if one.is_dir(follow_symlinks=False):
                waiting.append(one.path)
    return total


def link_into(work: Path, binds: Sequence[Bind]) -> None:
    """Let a process find its volumes: a path such as /data is `data` in its working folder, as a link.

    It leads to `.volumes/vol_x` beside it, which is a link to the volume. Who serves the files of that folder alone
    puts the volume itself there (see `sftp`).
    """
    for bind in binds:
        link, door = work / bind.target.lstrip("/"), work / DOORS / bind.source.name
        for folder in (link.parent, door.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not door.is_symlink():
            door.symlink_to(bind.source, target_is_directory=True)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(door, link.parent), target_is_directory=True)


def variables(binds: Sequence[Bind], *, work: Path | None = None) -> dict[str, str]:
    """Return GPUMARKET_VOLUME_NAME=path for each: the path in a container, or of the link in a working folder."""
    return {
        f"GPUMARKET_VOLUME_{re.sub('[^A-Z0-9]', '_', bind.name.upper())}": bind.target
        if work is None
        else str(work / bind.target.lstrip("/"))
        for bind in binds
        if bind.name
    }
