"""What a workload keeps on the node's disk, and its share of that: whoever passes it is ended before others are harmed.

The share is measured, and not enforced by the file system, because that works with both runtimes and on any disk. So a
workload may pass it for a moment, and what it has deleted and still holds open is not seen.
"""

import logging
import threading

from provisioning.agent.clock import boottime
from provisioning.agent.disk import filled
from provisioning.agent.podman import PodmanError
from provisioning.agent.protocol import Assignment
from provisioning.agent.workloads import Workload

log = logging.getLogger("gpumarket.agent")


class Shares:
    """Measures what workloads keep, each in a thread of its own: a walk over many files takes long."""

    PAUSE_S = 1.0
    PAUSES = 4  # So many times as long as the last measure took, so that a walk never keeps a core busy.

    def __init__(self) -> None:
        self._measures: dict[str, _Measure] = {}

    def why_over(self, wanted: Assignment, workload: Workload) -> str:
        """Return why a workload that runs has to end, or nothing; never waits. Ask again and again."""
        if wanted.work.disk_bytes is None:
            return ""
        measure = self._measures.get(wanted.id)
        if measure is None or measure.workload is not workload:
            measure = self._measures[wanted.id] = _Measure(workload, wanted.work.disk_bytes)
        if measure.used_bytes > measure.limit_bytes:
            return filled(measure.used_bytes, measure.limit_bytes)
        if boottime() >= measure.look_at and (measure.thread is None or not measure.thread.is_alive()):
            measure.thread = threading.Thread(target=measure.take, name=f"share-{wanted.id}", daemon=True)
            measure.thread.start()
        return ""

    def forget(self, name: str) -> None:
        """Forget a workload that is gone."""
        self._measures.pop(name, None)


class _Measure:
    """What one workload kept when it was measured last."""

    def __init__(self, workload: Workload, limit_bytes: int) -> None:
        self.workload = workload
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.look_at = 0.0
        self.thread: threading.Thread | None = None

    def take(self) -> None:
        began = boottime()
        try:
            self.used_bytes = self.workload.kept_bytes()
        except (OSError, PodmanError) as error:
            # It is removed this moment, or podman is busy: the next measure tells.
            log.info("not measured", extra={"assignment": self.workload.origin.id, "error": str(error)})
        ended = boottime()
        self.look_at = ended + max(Shares.PAUSE_S, Shares.PAUSES * (ended - began))
