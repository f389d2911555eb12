"""Carries the files of one workload: brings its inputs before it starts, keeps its checkpoint while it runs, takes away
what it leaves.

What takes long is done in a thread; the runtime asks again and again and never waits. What was done stands in files of
the workload's folder, so the next agent goes on from there:

    brought.json     there once inputs and checkpoint are in the work folder
    checkpoint.json  the manifest of the last checkpoint that the store has whole
    taken.json       the manifest of what was left behind, or why it could not be sent
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from provisioning.agent import folders
from provisioning.agent.clock import boottime
from provisioning.agent.control import Backoff, Refused, Trouble
from provisioning.agent.files import read_json, remove_tree, write_json
from provisioning.agent.manifest import ENTRIES_MAX, MANIFEST_BYTES_MAX, BadManifest, Entry, digest, written
from provisioning.agent.protocol import Assignment
from provisioning.agent.store import Holding, Store
from provisioning.agent.workloads import Look, Progress

log = logging.getLogger("gpumarket.agent")

KEEP_EVERY_S = 30.0
# After an end that was asked for: how long GPUs wait for the last checkpoint.
LAST_CHECKPOINT_S = 120.0
# For how long nothing may move before what was left behind is given up.
STUCK_S = 600.0
MISSING_SHOWN = 5
NO_ROOM = {413, 507}
ASK_FROM = 4  # Of fewer files none is asked for: sending one that is there already costs no more.


@dataclass(frozen=True)
class Kept:
    """A file of the last checkpoint: as it was then, and as the store has it."""

    found: folders.Found
    entry: Entry


class Carrier:
    """The files of one workload. The runtime's thread calls; a thread of its own works."""

    def __init__(self, wanted: Assignment, *, folder: Path, store: Store | None) -> None:
        self._work = wanted.work
        self._is_first = wanted.replica == 0  # What the others of a gang leave is theirs alone.
        self.fence = wanted.fence
        self._holding = Holding(wanted.id, wanted.fence)
        self._folder, self._root = folder, folder / "work"
        remove_leftovers(folder)
        self._store = store
        self._thread: threading.Thread | None = None
        self._progress: _Meter | None = None
        self._furthest: dict[str, int] = {}
        self._kept: dict[str, Kept] = {}
        self._look_at = 0.0
        self._ends_at: float | None = None
        self._is_over = False
        self._stopping = threading.Event()
        self.trouble = ""  # Why it can never start.
        self.has_brought = not (self._work.inputs or self._work.checkpoint_sha256) or self._file("brought").exists()
        self.checkpoint: str | None = (read_json(self._file("checkpoint")) or {}).get("sha256")
        taken = read_json(self._file("taken")) or {}
        self.outputs: str | None = taken.get("sha256")
        self._said: str = taken.get("said", "")
        self._failure: str = taken.get("failure", "")
        self._has_taken = bool(taken)

    def show(self, look: Look, *, is_asked_to_end: bool) -> Look:
        """Return how a workload looks with its files: it is not prepared before them, and has not ended before them.

        Of what was asked to end, nothing is taken but its checkpoint.
        """
        if look.state in {"preparing", "prepared"} and not self.has_brought:
            return Look("preparing", progress=self._told() or look.progress, ports=look.ports)
        if look.state != "exited":
            return look
        if is_asked_to_end or self._is_done_after_exit():
            said = "; ".join(filter(None, [look.message, self._said, self._failure]))
            state, code = ("failed", None) if self._failure else ("exited", look.exit_code)
            return Look(state, exit_code=code, exited_at=look.exited_at, message=said, ports=look.ports)
        return Look("running", message="sending what it left behind", progress=self._told(), ports=look.ports)

    def bring(self) -> None:
        """Take a step towards inputs and checkpoint being in the work folder."""
        if not self.has_brought and not self.trouble:
            self._begin(self._bring)

    def keep(self) -> None:
        """Send the checkpoint folder from time to time, if it changed. For what runs."""
        if self._work.checkpoint and self._is_first and boottime() >= self._look_at:
            self._begin(self._keep)

    def take_last(self) -> bool:
        """Take a step towards the last checkpoint being sent, of what was asked to end; return whether it is over."""
        if not (self._work.checkpoint and self._is_first) or self._is_over:
            return True
        if self._ends_at is None:
            self._ends_at = boottime() + LAST_CHECKPOINT_S
        if boottime() > self._ends_at:
            log.warning("the last checkpoint was not sent in time", extra={"assignment": self._holding.assignment})
            return True
        self._begin(self._finish_keeping)
        return self._is_over

    def stop(self) -> bool:
        """Do nothing any more; return whether nothing is being done."""
        self._stopping.set()
        return self._thread is None or not self._thread.is_alive()

    def _is_done_after_exit(self) -> bool:
        """Take a step towards all that it left behind being sent; return whether that is so, or was given up."""
        if not (self._work.outputs or self._work.checkpoint) or not self._is_first or self._has_taken:
            return True
        self._begin(self._take)
        return self._has_taken

    def _told(self) -> Progress | None:
        return self._progress.told() if self._progress else None

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _begin(self, work: Callable[[Store], None]) -> None:
        if self._stopping.is_set() or (self._thread is not None and self._thread.is_alive()):
            return
        name = f"files-{self._holding.assignment}"
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[Store], None]) -> None:
        assert self._store is not None
        backoff, moved_at = Backoff(), boottime()
        self._progress, self._furthest = None, {}
        while not self._stopping.is_set():
            try:
                work(self._store)
                return
            except _Stopped:
                return
            except Trouble as trouble:
                if self._has_moved():
                    backoff.reset()
                    moved_at = boottime()
                if self._is_given_up(work, str(trouble), stuck_s=boottime() - moved_at):
                    return
                self._stopping.wait(max(backoff.next_s(), trouble.retry_after_s))
            except (Refused, OSError, BadManifest, folders.TooManyFiles) as error:
                self._give_up(work, str(error) or type(error).__name__)
                return
            except Exception:
                log.exception("carrying files failed", extra={"assignment": self._holding.assignment})
                self._give_up(work, "an error of the node agent; its log says more")
                return

    def _has_moved(self) -> bool:
        """Return whether more is over than after any try before. Each try measures anew, from nothing on."""
        meter = self._progress
        if meter is None:
            return False
        before, done = self._furthest.get(meter.step, 0), meter.done()
        self._furthest[meter.step] = max(before, done)
        return done > before

    def _is_given_up(self, work: Callable[[Store], None], why: str, *, stuck_s: float) -> bool:
        """Return whether to stop trying for now. A checkpoint is tried again by itself."""
        log.warning("files do not move", extra={"assignment": self._holding.assignment, "reason": why})
        if work in {self._keep, self._finish_keeping}:
            self._look_at = boottime() + KEEP_EVERY_S
            return True
        if stuck_s > STUCK_S:
            self._give_up(work, why)
            return True
        return False

    def _give_up(self, work: Callable[[Store], None], why: str) -> None:
        log.error("files are given up", extra={"assignment": self._holding.assignment, "reason": why})
        if work == self._bring:
            self.trouble = f"its files could not be brought: {why}"
        elif work == self._take:
            self._note_taken(failure=f"what it left behind could not be sent: {why}")
        else:
            self._look_at = boottime() + KEEP_EVERY_S
            self._is_over = work == self._finish_keeping

    # Bringing.

    def _bring(self, store: Store) -> None:
        """Fetch the inputs, then the checkpoint over them."""
        plan: list[tuple[Path, Entry]] = []
        if self._work.inputs:
            plan += [(self._root, entry) for entry in store.folder(self._holding, self._work.inputs)]
        if self._work.checkpoint_sha256:
            root = self._root / self._work.checkpoint
            plan += [(root, entry) for entry in store.folder(self._holding, self._work.checkpoint_sha256)]
        meter = self._measure("inputs", [entry for _, entry in plan])
        for root, entry in plan:
            target = root / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            # A file of the checkpoint takes the place of the input; nothing of the command's has run here yet.
            tell = meter.of_next()
            if _is_there(target, entry):
                tell(entry.size)
            else:
                store.fetch(self._holding, entry, target, tell=tell)
        write_json(self._file("brought"), {"files": len(plan)})
        self.has_brought = True

    # Keeping.

    def _keep(self, store: Store) -> None:
        """Send the checkpoint if it changed and is at rest; what is being written now is looked at again later."""
        self._look_at = boottime() + KEEP_EVERY_S
        before = self._seen()
        if len(before) > ENTRIES_MAX:
            raise folders.TooManyFiles(f"there are more than {ENTRIES_MAX} files")
        if before == {path: kept.found for path, kept in self._kept.items()}:
            return
        fresh = dict[str, Kept]()
        with TemporaryDirectory(dir=self._folder, prefix=".checkpoint-") as beside:
            self._stage(before, Path(beside), fresh)
            if self._seen() != before:
                self._look_at = boottime() + KEEP_EVERY_S / 6
                return
            self._send_checkpoint(store, fresh, Path(beside))

    def _finish_keeping(self, store: Store) -> None:
        self._keep(store)
        self._is_over = True

    def _seen(self) -> dict[str, folders.Found]:
        return {found.path: found for found in folders.walk(self._root, below=self._work.checkpoint)}

    def _stage(self, seen: dict[str, folders.Found], beside: Path, fresh: dict[str, Kept]) -> None:
        """Copy what is new, so that what is hashed is what is sent, whatever the command writes meanwhile."""
        for number, (path, found) in enumerate(seen.items()):
            known = self._kept.get(path)
            if known is not None and known.found == found:
                fresh[path] = known
                continue
            copy = beside / str(number)
            try:
                with os.fdopen(folders.open_beneath(self._root, path), "rb") as file, copy.open("xb") as kept:
                    while piece := file.read(folders.READ_BYTES):
                        kept.write(piece)
            except FileNotFoundError:
                continue  # It is gone; the look afterwards sees that.
            entry = folders.entry_of(beside, copy.name)
            name = path.removeprefix(f"{self._work.checkpoint}/")
            fresh[path] = Kept(found, Entry(name, entry.sha256, entry.size, found.mode))

    def _send_checkpoint(self, store: Store, fresh: dict[str, Kept], beside: Path) -> None:
        new = {
            kept.entry: beside / str(number)
            for number, kept in enumerate(fresh.values())
            if (beside / str(number)).exists()
        }
        meter = self._measure("checkpoint", list(new))
        refused = self._send_all(store, list(new), meter, opened=lambda entry: new[entry].open("rb"))
        if refused:
            raise Refused(507, next(iter(refused.values())))
        sha256 = self._send_manifest(store, [kept.entry for kept in fresh.values()])
        write_json(self._file("checkpoint"), {"sha256": sha256})
        self.checkpoint, self._kept = sha256, fresh

    # Taking away.

    def _take(self, store: Store) -> None:
        """Send the last checkpoint and all that was declared. The command has ended: nothing changes any more.

        Where that fails by what the command did, or its project keeps too much, it left nothing, and is told why.
        """
        self._measure("outputs", [])  # So that it is seen from the first on that the command has ended.
        said = self._keep_at_end(store) if self._work.checkpoint else []
        self._measure("outputs", [])
        sha256 = None
        if self._work.outputs:
            try:
                sha256, more = self._send_outputs(store)
            except (Refused, folders.TooManyFiles, BadManifest, PermissionError) as fault:
                if isinstance(fault, Refused) and fault.status not in NO_ROOM:
                    raise
                sha256, more = self._send_manifest(store, []), [f"what it left behind could not be kept: {fault}"]
            said += more
        self._note_taken(sha256=sha256, said="; ".join(said))

    def _keep_at_end(self, store: Store) -> list[str]:
        """Send the last checkpoint; return what is to be said. Where it cannot be kept, the one before stays."""
        try:
            self._keep(store)
        except (Refused, OSError, BadManifest, folders.TooManyFiles) as why:
            return [f"its last checkpoint could not be kept: {why}"]
        return []

    def _send_outputs(self, store: Store) -> tuple[str, list[str]]:
        """Send what was declared; return the manifest, and what is to be said of the rest."""
        paths, lacking = folders.matching(self._root, self._work.outputs)
        entries = [folders.entry_of(self._root, path) for path in paths]
        meter = self._measure("outputs", entries)
        refused = self._send_all(store, entries, meter, opened=partial(_opened, self._root))
        kept = [entry for entry in entries if entry.sha256 not in refused]
        sha256 = self._send_manifest(store, kept)
        said = [f"it did not leave {_listed(lacking)}"] if lacking else []
        lost = [entry for entry in entries if entry.sha256 in refused]
        if lost:
            said.append(f"{_listed([entry.path for entry in lost])} could not be kept: {refused[lost[0].sha256]}")
        return sha256, said

    def _note_taken(self, *, sha256: str | None = None, said: str = "", failure: str = "") -> None:
        try:
            write_json(self._file("taken"), {"sha256": sha256, "said": said, "failure": failure})
        except OSError as error:  # The next agent would do it again, and find most of it in the store.
            log.warning(
                "cannot note what was taken", extra={"assignment": self._holding.assignment, "error": str(error)}
            )
        self.outputs, self._said, self._failure, self._has_taken = sha256, said, failure, True

    # Sending.

    def _send_all(
        self, store: Store, entries: Sequence[Entry], meter: "_Meter", *, opened: Callable[[Entry], IO[bytes]]
    ) -> dict[str, str]:
        """Send what the store lacks; return what it has no room for, by digest, and why."""
        refused = dict[str, str]()
        unlike = {entry.sha256: entry for entry in entries}
        lacking = set(store.missing(self._holding, list(unlike)) if len(unlike) > ASK_FROM else unlike)
        for entry in unlike.values():
            if entry.sha256 not in lacking:
                meter.of_next()(entry.size)
                continue
            try:
                with opened(entry) as file:
                    store.send(self._holding, entry.sha256, entry.size, file, tell=meter.of_next())
            except Refused as refusal:
                if refusal.status not in NO_ROOM:
                    raise
                refused[entry.sha256] = str(refusal)
        return refused

    def _send_manifest(self, store: Store, entries: Sequence[Entry]) -> str:
        data = written(entries)
        if len(data) > MANIFEST_BYTES_MAX:
            raise BadManifest(f"a manifest has at most {MANIFEST_BYTES_MAX} bytes")
        store.send(self._holding, digest(data), len(data), BytesIO(data), tell=lambda _: None)
        return digest(data)

    def _measure(self, step: str, entries: Sequence[Entry]) -> "_Meter":
        self._progress = _Meter(step, sum(entry.size for entry in entries), self._stopping)
        return self._progress


class _Stopped(Exception):
    """Nobody wants it any more."""


class _Meter:
    """How far files are, of how many bytes. One thread writes, another reads."""

    def __init__(self, step: str, total: int, stopping: threading.Event) -> None:
        self.step = step
        self._total, self._stopping = total, stopping
        self._began = time.monotonic()
        self._done: list[int] = []

    def of_next(self) -> Callable[[int], None]:
        """Return what takes down how far the next file is, and ends the work once it is told to stop."""
        number = len(self._done)
        self._done.append(0)

        def tell(done: int) -> None:
            if self._stopping.is_set():
                raise _Stopped
            self._done[number] = done

        return tell

    def done(self) -> int:
        """Return how many bytes are over."""
        return sum(tuple(self._done))

    def told(self) -> Progress:
        """Return it as it is reported."""
        done = self.done()
        took_s = max(0.001, time.monotonic() - self._began)
        return Progress(self.step, min(done, self._total), self._total, int(done / took_s))


def _is_there(target: Path, entry: Entry) -> bool:
    """Return whether an agent before us has brought this file."""
    try:
        return (
            target.stat().st_size == entry.size and folders.entry_of(target.parent, target.name).sha256 == entry.sha256
        )
    except OSError:
        return False


def _opened(root: Path, entry: Entry) -> IO[bytes]:
    return os.fdopen(folders.open_beneath(root, entry.path), "rb")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MISSING_SHOWN
    return ", ".join(names[:MISSING_SHOWN]) + (f" and {more} more" if more > 0 else "")


def remove_leftovers(folder: Path) -> None:
    """Remove what an agent that was killed had put beside to send."""
    for left in folder.glob(".checkpoint-*"):
        remove_tree(left)
