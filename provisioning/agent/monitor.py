"""Looks at the GPUs in a thread of its own: a driver that hangs must not keep the agent from speaking."""

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from provisioning.agent.clock import boottime
from provisioning.agent.gpus import Gpu, GpuSource, Link, Reading
from provisioning.agent.state import Home

log = logging.getLogger("gpumarket.agent")


@dataclass(frozen=True)
class Inventory:
    """The GPUs of this node; the generation grows when anything here changes."""

    generation: int
    source: str
    gpus: tuple[Gpu, ...]
    driver: str | None = None
    links: tuple[Link, ...] = ()

    def find(self, uuid: str) -> Gpu | None:
        """Return the GPU of this name."""
        return next((gpu for gpu in self.gpus if gpu.uuid == uuid), None)

    def as_json(self) -> dict[str, Any]:
        """Return the protocol's INVENTORY."""
        return asdict(self)


class GpuMonitor:
    """Reads a source again and again; `inventory` and `take_meters` never wait for it."""

    INTERVAL_S = 2.0
    SILENT_AFTER_S = 60.0

    def __init__(
        self,
        *,
        source: GpuSource,
        home: Home,
        changed: Callable[[], None],
        went_silent: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._home = home
        self._changed = changed
        self._went_silent = went_silent
        self._guard = threading.Lock()
        self._busy: frozenset[str] = frozenset()
        self._readings: list[Reading] = []
        self._millijoules: dict[str, int] = {}
        self._inventory: Inventory | None = None
        self._loads = source.loads
        if source.name == "simulated":
            home.begin_driver_epoch()  # A simulated counter lives no longer than its agent.
        self.look()

    def run(self, stopping: threading.Event) -> None:
        """Look until told to stop."""
        while not stopping.wait(self.INTERVAL_S):
            try:
                self.look()
            except Exception:
                log.exception("reading the GPUs failed; trying again")

    def look(self) -> None:
        """Read the source once."""
        found = self._source.read(busy=self._busy)
        readings = [reading for _, reading in found]
        counters = {one.uuid: one.millijoules for one in readings if one.millijoules is not None}
        was_reset = any(counters[name] < self._millijoules.get(name, 0) for name in counters)
        if was_reset or self._source.loads != self._loads:
            # A counter may have passed its old value by the time we look: the load itself tells, where it is seen.
            self._loads = self._source.loads
            self._home.begin_driver_epoch()
        self._millijoules |= counters
        self._publish(tuple(gpu for gpu, _ in found), driver=self._source.driver, links=self._source.links())
        with self._guard:
            self._readings = readings
            self._looked_at = boottime()

    def _publish(self, gpus: tuple[Gpu, ...], *, driver: str | None, links: tuple[Link, ...]) -> None:
        before = self._inventory
        if before is not None and (before.gpus, before.driver, before.links) == (gpus, driver, links):
            return
        content = json.dumps([self._source.name, driver, *map(asdict, gpus), *map(asdict, links)])
        generation = self._home.inventory_generation(content)
        self._inventory = Inventory(generation, self._source.name, gpus, driver, links)
        ill = [gpu.uuid for gpu in gpus if not gpu.healthy]
        log.info("inventory", extra={"gpus": len(gpus), "unhealthy": ill, "generation": generation})
        self._changed()

    def inventory(self) -> Inventory:
        """Return the latest inventory. GPUs of a source that no longer answers are not healthy."""
        with self._guard:
            is_silent = boottime() - self._looked_at > self.SILENT_AFTER_S
        assert self._inventory is not None
        if is_silent and any(gpu.healthy for gpu in self._inventory.gpus):
            log.error("the GPU driver does not answer", extra={"source": self._source.name})
            self._went_silent()
            ill = tuple(replace(gpu, healthy=False) for gpu in self._inventory.gpus)
            self._publish(ill, driver=self._inventory.driver, links=self._inventory.links)
        return self._inventory

    def take_meters(self, *, busy: frozenset[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return (energy, telemetry) since the last call: empty unless the meters were read meanwhile."""
        self._busy = busy
        with self._guard:
            readings, self._readings = self._readings, []
        epoch = self._home.driver_epoch()
        energy = [
            {"uuid": one.uuid, "millijoules": one.millijoules, "driver_epoch": epoch}
            for one in readings
            if one.millijoules is not None
        ]
        telemetry = [{name: value for name, value in asdict(one).items() if name != "millijoules"} for one in readings]
        return energy, telemetry
