"""A Slurm cluster and its row with us: the fixtures that tests of the driver play on."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.utils import timezone

from provisioning import clusters, engine
from provisioning.models import Assignment, Cluster, Fabric, Instance, Node
from provisioning.secrets import seal
from provisioning.steps import PLAN
from tests.slurm import cluster as daemons

SETTLES_WITHIN_S = 60
SETTLED = {
    "prepared": {"prepared", "failed"},
    "running": {"running", "exited", "failed"},
    "gone": {"gone"},
}


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[daemons.SlurmCluster]:
    """Real daemons, for all tests of a run."""
    yield from daemons.fresh()


@dataclass
class SlurmStage:
    """The daemons, our row of their cluster, and its four nodes on an offer of their own."""

    daemons: daemons.SlurmCluster
    cluster: Cluster
    offer: Any

    def look(self) -> bool:
        """Look at the cluster now, whatever it is due for."""
        Cluster.objects.filter(pk=self.cluster.pk).update(due_at=timezone.now(), lease_until=None)
        return clusters.look(self.cluster.pk)

    def settle(self) -> None:
        """Look until every assignment stands where we want it."""
        self.until(lambda: all(row.observed in SETTLED[row.desired] for row in self.assignments()))

    def until(self, is_so: Callable[[], bool], *, turn: Callable[[], object] = lambda: None) -> None:
        until = time.monotonic() + SETTLES_WITHIN_S
        self.look()
        while not is_so():
            assert time.monotonic() < until, f"{self.shown()}\n{self.daemons.queue()}"
            time.sleep(0.05)
            turn()
            self.look()

    def run(self, is_so: Callable[[], bool]) -> None:
        """Run workflows and looks until something is so."""
        self.until(is_so, turn=self.turn)

    def turn(self) -> None:
        """Run one turn of every workflow that is due."""
        for workflow_id in engine.due(limit=1000):
            for _ in range(20):
                if not engine.run_one(workflow_id, PLAN):
                    break

    def assignments(self) -> list[Assignment]:
        return list(Assignment.objects.filter(slurm_job__isnull=False).select_related("node__slurm", "instance"))

    def shown(self) -> str:
        rows = Instance.objects.values_list("name", "phase", "message", "workflow__step", "workflow__last_error")
        return "\n".join(map(str, [*rows, *((row.public_id, row.observed, row.message) for row in self.assignments())]))


@pytest.fixture
def slurm(slurm_cluster: daemons.SlurmCluster, operator: Any, site: Any) -> Iterator[SlurmStage]:
    """An empty cluster with its nodes known to us; what the test leaves behind is cancelled."""
    from tests.conftest import make_offer

    fabric = Fabric.objects.create(site=site, name="slurm fabric", kind="infiniband")
    offer = make_offer(operator, site, slug="h100-slurm", gpu_model="H100", price_micros=1_990_000)
    offer.runtime = "slurm"
    offer.save()
    cluster = Cluster.objects.create(
        name="north", fabric=fabric, offer=offer, base_url=slurm_cluster.url, user=daemons.USER,
        token_sealed=seal(slurm_cluster.token()), partition="market", spot_partition="spot",
        log_path=str(slurm_cluster.log_path),
    )  # fmt: skip
    stage = SlurmStage(slurm_cluster, cluster, offer)
    assert stage.look(), Cluster.objects.get().last_error
    assert Node.objects.filter(driver="slurm").count() == len(daemons.NODES)
    yield stage
    slurm_cluster.tidy()
