"""Whether one control plane hears a whole fleet: every node of 300,000 GPUs reports once in ten seconds.

    uv run python -m tests.bench.fleet --nodes 37504 --json

Fills a database of its own, serves the real gateway as `up` does, and lets one
process speak the batched sync for all nodes. Afterwards each node's last report
must be in the database. Then nodes fall silent and faults storm, and the breaker
must hold. docs/benchmarks.md explains the figures.
"""

import argparse
import os
import sys
import threading
import time
from typing import Any

import redis as redis_client

from tests import schema
from tests.bench import machine
from tests.bench.stage import Stage, set_up

WARM_UP_INTERVALS = 1
# Long enough for silent nodes to be found unreachable, which is after 40 s.
SILENCE_S = 70
SILENT_EVERY, XID_EVERY = 20, 20
SWEEP_S = 1.0


def main() -> int:
    """Run the benchmark; the last line of the output is JSON. Returns 1 on any fault."""
    given = _arguments()
    here = machine.facts()
    bench = Bench(given)
    with set_up() as stage:
        figures = bench.run(stage)
    print(machine.last_line("fleet", figures, here))
    return 0 if figures["faults"] == [] else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench.fleet", description=__doc__)
    parser.add_argument("--nodes", type=int, default=37_504, help="nodes of 8 GPUs (default: 37504)")
    parser.add_argument("--interval", type=float, default=10, help="seconds between a node's reports (default: 10)")
    parser.add_argument("--seconds", type=float, default=60, help="length of the measurement (default: 60)")
    parser.add_argument("--batch", type=int, default=500, help="nodes that a relay speaks for (default: 500)")
    parser.add_argument("--busy", type=float, default=0.5, help="share of nodes that run an instance (default: 0.5)")
    parser.add_argument("--workers", type=int, help="web processes (default: as many as `up` starts)")
    parser.add_argument("--no-failures", action="store_true", help="leave the failures out")
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON")
    return parser.parse_args()


class Bench:
    """One run: its options, and what it found."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.figures: dict[str, Any] = {
            "nodes": given.nodes, "interval_s": given.interval, "batch": given.batch, "faults": []
        }  # fmt: skip
        self.nodes: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        if not self.given.json:
            print(text, flush=True)

    def run(self, stage: Stage) -> dict[str, Any]:
        self._fill(stage)
        with stage.web("marketplace.wsgi:application", workers=self.given.workers) as web:
            self._speak(stage, web, seconds=WARM_UP_INTERVALS * self.given.interval)
            self._measure(stage, web)
            if not self.given.no_failures:
                self._break(stage, web)
        return self.figures

    def _fill(self, stage: Stage) -> None:
        """Make the fleet. Django reads its settings here, once the servers run."""
        os.environ.update(stage.environ)
        import django

        django.setup()
        from tests.bench import world

        began = time.monotonic()
        schema.fill()
        offers = world.make_offers()
        customers = world.make_customers(1)
        world.grow(offers, gpus=self.given.nodes * world.GPUS_PER_NODE)
        world.make_busy(share=self.given.busy, project_id=customers.projects[0])
        self.nodes = world.speakers()
        self.figures["fill_s"] = round(time.monotonic() - began, 1)
        self.say(f"{len(self.nodes):,} nodes filled in {self.figures['fill_s']} s")

    def _speak(self, stage: Stage, web: Any, *, seconds: float, **failures: int) -> dict[str, Any]:
        """Let the fleet speak for a while; go on from where each node then stands."""
        seen = stage.load(
            program="tests.bench.relays", nodes=self.nodes, port=web.port, gpus=8, seconds=seconds,
            interval=self.given.interval, batch=self.given.batch, **{"silent_every": 0, "xid_every": 0} | failures,
        )  # fmt: skip
        for node in self.nodes:
            node["acknowledged"], node["seq"], node["generation"] = seen["nodes"][node["id"]]
        return seen

    def _measure(self, stage: Stage, web: Any) -> None:
        before, commands = stage.cpu(web), _redis_commands(stage)
        seen = self._speak(stage, web, seconds=self.given.seconds)
        after = stage.cpu(web)
        ok = seen["statuses"].get("ok", 0)
        self.figures |= {
            "syncs_per_s": round(seen["syncs"] / seen["seconds"], 1),
            "node_updates_per_s": round(ok / seen["seconds"]),
            "wanted_updates_per_s": round(len(self.nodes) / self.given.interval),
            "lag_p50_s": round(machine.percentile(seen["late_s"], 0.5), 2),
            "lag_p99_s": round(machine.percentile(seen["late_s"], 0.99), 2),
            "lag_slowest_s": round(max(seen["late_s"]), 2),
            "sync_p50_ms": round(1000 * machine.percentile(seen["took_s"], 0.5)),
            "sync_p99_ms": round(1000 * machine.percentile(seen["took_s"], 0.99)),
            "mib_per_s": round(seen["mib_sent"] / seen["seconds"], 1),
            "answers": seen["statuses"],
            "web_cores": round((after.web_s - before.web_s) / (after.at - before.at), 2),
            "database_cores": round((after.database_s - before.database_s) / (after.at - before.at), 2),
            "relays_cores": round((after.clients_s - before.clients_s) / (after.at - before.at), 2),
            "others_cores": after.others_cores(before),
            "redis_commands": _redis_commands(stage) - commands,
            "memory_mib": round(web.memory_mib, 1),
        }
        self.figures["lost_reports"] = self._lost()
        if self.figures["lost_reports"] or set(seen["statuses"]) != {"ok"}:
            self.figures["faults"].append(f"{self.figures['lost_reports']} lost, answers {seen['statuses']}")
        if self.figures["lag_slowest_s"] > self.given.interval:
            self.figures["faults"].append("the slowest node waited for longer than an interval")
        self.say(
            "{node_updates_per_s} node updates/s in {syncs_per_s} syncs/s; lag p50 {lag_p50_s} s, slowest "
            "{lag_slowest_s} s; lost {lost_reports}".format(**self.figures)
        )
        self.say(
            "cores: web {web_cores}, database {database_cores}, relays {relays_cores}, others {others_cores}; "
            "Redis commands {redis_commands}".format(**self.figures)
        )

    def _lost(self) -> int:
        """Return how many nodes' last acknowledged report is not in the database."""
        from provisioning.models import Heartbeat

        kept = dict(Heartbeat.objects.values_list("node__public_id", "seq"))
        return sum(kept[node["id"]] < node["acknowledged"] for node in self.nodes)

    def _break(self, stage: Stage, web: Any) -> None:
        """Let one node in twenty fall silent and another lose a GPU, and see that nobody acts on a mass of them."""
        from provisioning.models import Assignment, Breaker, HealthEvent, Node, Remediation

        seconds = max(SILENCE_S, 2 * self.given.interval)
        with Sweeps() as sweeps:
            seen = self._speak(stage, web, seconds=seconds, silent_every=SILENT_EVERY, xid_every=XID_EVERY)
            time.sleep(SWEEP_S)
        raised = len(self.nodes[::XID_EVERY])
        taken = HealthEvent.objects.filter(code="xid:79").count()
        acted = Remediation.objects.exclude(state=Remediation.State.WAITING).values("node").distinct().count()
        fleet = Breaker.objects.filter(offer=None, opened_at__isnull=False).exists()
        silent = Node.objects.filter(reachability=Node.Reachability.UNREACHABLE).count()
        lost = Node.objects.filter(reachability=Node.Reachability.LOST).count()
        given_up = Assignment.objects.filter(message__contains="has not answered").count()
        self.figures["failures"] = {
            "seconds": round(seconds),
            "silent_nodes": len(seen["silent"]),
            "marked_unreachable": silent,
            "given_up": given_up + lost,
            "fleet_breaker_open": fleet,
            "xids_raised": raised,
            "xids_taken": taken,
            "nodes_acted_on": acted,
            "nodes_that_may_be_acted_on": _may_be_acted_on(),
            "offer_breakers_open": Breaker.objects.filter(offer__isnull=False, opened_at__isnull=False).count(),
            "sweep_slowest_s": round(sweeps.slowest_s, 2),
            "lag_slowest_s": round(max(seen["late_s"]), 2),
            "answers": seen["statuses"],
        }
        self.say(f"failures: {self.figures['failures']}")
        self._judge(self.figures["failures"])

    def _judge(self, seen: dict[str, Any]) -> None:
        """Note what should not be: events lost, a mass acted on, nodes given up while the silence is our own."""
        if seen["xids_taken"] + len(self.nodes[:: XID_EVERY * SILENT_EVERY]) < seen["xids_raised"]:
            self.figures["faults"].append("health events were lost")
        if seen["nodes_acted_on"] > seen["nodes_that_may_be_acted_on"]:
            self.figures["faults"].append("more nodes were acted on than the breakers allow")
        if not seen["fleet_breaker_open"] or seen["given_up"]:
            self.figures["faults"].append("a mass of silent nodes was taken for lost")
        if set(seen["answers"]) != {"ok"}:
            self.figures["faults"].append(f"answers {seen['answers']}")


class Sweeps:
    """What workers do for nodes' health, at the pace of beat, in a thread of this process."""

    def __init__(self) -> None:
        self.slowest_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Sweeps":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        from django.db import connection

        from provisioning import tasks

        while not self._over.wait(SWEEP_S):
            for sweep in (tasks.decide_health_events, tasks.repair, tasks.notice_silent_nodes):
                began = time.monotonic()
                sweep()
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        connection.close()


def _may_be_acted_on() -> int:
    """Return how many nodes all breakers together let through in ten minutes."""
    from marketplace.models import Offer
    from provisioning.health import breaker

    return sum(breaker.nodes_max(offer.nodes.count()) for offer in Offer.objects.all())


def _redis_commands(stage: Stage) -> int:
    """Return how many commands Redis has carried out, without this question."""
    info = redis_client.Redis.from_url(stage.environ["REDIS_URL"]).info("stats")
    return int(info["total_commands_processed"])


if __name__ == "__main__":
    sys.exit(main())
