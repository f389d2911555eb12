"""The sweep that charges, as the workers run it: in parts side by side, each in a process of its own."""

import multiprocessing
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

PARTS = 2  # as the beat has it


@dataclass
class Memory:
    """The most memory of its own that a database backend had, looked at many times a second."""

    pid: int
    peak_kib: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watched(self) -> Iterator[None]:
        looker = threading.Thread(target=self._look, daemon=True)
        looker.start()
        try:
            yield
        finally:
            self._over.set()
            looker.join()

    def _look(self) -> None:
        status = Path(f"/proc/{self.pid}/status")
        while not self._over.wait(0.05) and status.exists():
            for line in status.read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.peak_kib = max(self.peak_kib, int(line.split()[1]))


class Sweep(NamedTuple):
    """What a part of a sweep did and took."""

    charges: int
    cpu_s: float
    memory_kib: int
    backend_memory_kib: int


class Sweeps:
    """Processes that wait for something to charge, one for each part; `with` ends them."""

    def __init__(self) -> None:
        self.memory_kib = self.backend_memory_kib = 0
        # Not forked: each connects for itself, as a worker does.
        self._pool = multiprocessing.get_context("spawn").Pool(PARTS, initializer=_begin)

    def __enter__(self) -> "Sweeps":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()
        self._pool.join()

    def run(self, at: datetime, *, limit: int) -> tuple[int, float]:
        """Charge all parts at the same time; return how many charges that made, and the processor time of Python."""
        done = self._pool.starmap(_charge, [(at, limit, part) for part in range(PARTS)], chunksize=1)
        self.memory_kib = max(self.memory_kib, *(sweep.memory_kib for sweep in done))
        self.backend_memory_kib = max(self.backend_memory_kib, *(sweep.backend_memory_kib for sweep in done))
        return sum(sweep.charges for sweep in done), sum(sweep.cpu_s for sweep in done)


def _begin() -> None:
    import django

    django.setup()


def _charge(at: datetime, limit: int, part: int) -> Sweep:
    from django.db import connection

    from billing import charging

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        memory = Memory(pid=cursor.fetchone()[0])
    began = time.process_time()
    with memory.watched():
        charges = charging.charge_due(at=at, limit=limit, part=part, parts=PARTS)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Sweep(charges, time.process_time() - began, used, memory.peak_kib)
