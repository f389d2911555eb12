"""How many launches a marketplace accepts each second, at any size of fleet.

    uv run python -m tests.bench.rent --gpus 300000 --clients 8 --seconds 20 --json

Fills a database of its own, serves it as `up` does, sends orders over HTTP and
checks the books and the GPUs afterwards. The same run measures the bare claim
in pgbench and behind a bare Django view. docs/benchmarks.md explains the figures.
"""

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests import schema
from tests.bench import machine
from tests.bench.stage import Stage, set_up

CUSTOMERS_MAX, GPUS_PER_CUSTOMER = 64, 40
SMALL_FLEET = 3000
WARM_UP_SHARE = 0.15
SIZES = (1, 1, 1, 1, 2, 2, 4, 8)
OFFER_READS = 40
CLAIM = Path(__file__).with_name("claim.sql")


def main() -> int:
    """Run the benchmark; the last line of the output is JSON. Returns 1 when what it left behind is wrong."""
    given = _arguments()
    here = machine.facts()
    bench = Bench(given)
    with set_up() as stage:
        figures = bench.run(stage)
    print(machine.last_line("rent", figures, here))
    return 0 if figures["faults"] == [] else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench.rent", description=__doc__)
    parser.add_argument("--gpus", type=int, default=300_000, help="size of the fleet (default: 300000)")
    parser.add_argument("--clients", type=int, default=8, help="connections that order (default: 8)")
    parser.add_argument("--seconds", type=float, default=20, help="length of each measurement (default: 20)")
    parser.add_argument("--workers", type=int, help="web processes (default: as many as `up` starts)")
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON")
    return parser.parse_args()


class Bench:
    """One run: its options, and what it found."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.figures: dict[str, Any] = {"gpus": given.gpus, "clients": given.clients, "seconds": given.seconds}

    def say(self, text: str) -> None:
        if not self.given.json:
            print(text, flush=True)

    def run(self, stage: Stage) -> dict[str, Any]:
        self._fill(stage, min(SMALL_FLEET, self.given.gpus))
        accepted = self._measure_small_fleet(stage) if self.given.gpus > SMALL_FLEET else 0
        self._grow()
        with stage.web("marketplace.wsgi:application", workers=self.given.workers) as web:
            accepted += self._measure_rent(stage, web)
        self._measure_bare(stage)
        self._verify(accepted)
        return self.figures

    def _fill(self, stage: Stage, gpus: int) -> None:
        """Make tables, customers and the first nodes. Django reads its settings here, once the servers run."""
        os.environ.update(stage.environ)
        import django

        django.setup()
        from tests.bench import world

        schema.fill()
        self.offers = world.make_offers()
        self.customers = world.make_customers(min(CUSTOMERS_MAX, self.given.gpus // GPUS_PER_CUSTOMER))
        world.grow(self.offers, gpus=gpus)
        self.job = {
            "clients": self.given.clients,
            "tokens": self.customers.tokens,
            "offers": [offer.slug for offer in self.offers],
            "gpus": SIZES,
        }

    def _grow(self) -> None:
        from tests.bench import world

        began = time.monotonic()
        world.grow(self.offers, gpus=self.given.gpus)
        self.figures["fill_s"] = round(time.monotonic() - began, 1)
        self.say(f"{self.given.gpus:,} GPUs filled in {self.figures['fill_s']} s")

    def _order(self, stage: Stage, web: Any, *, seconds: float, seed: str, **job: Any) -> dict[str, Any]:
        return stage.load(
            **self.job, method="POST", path="/api/v1/instances", port=web.port, seconds=seconds, seed=seed, **job
        )

    def _measure_small_fleet(self, stage: Stage) -> int:
        """Return how many launches were accepted while the memory at a small fleet was measured."""
        with stage.web("marketplace.wsgi:application", workers=self.given.workers) as web:
            seen = self._order(stage, web, seconds=self.given.seconds / 2, seed="small")
            self._read_offers(stage, web)
            self.figures["memory_mib_at_3000_gpus"] = round(web.memory_mib, 1)
        return _accepted(seen)

    def _read_offers(self, stage: Stage, web: Any) -> list[float]:
        seen = stage.load(
            method="GET", path="/api/v1/offers", port=web.port, clients=1, seconds=30, most=OFFER_READS,
            tokens=self.customers.tokens, seed="offers",
        )  # fmt: skip
        assert all(code == "ok" for code, _ in seen["answers"]), seen["answers"]
        return [1000 * seconds for _, seconds in seen["answers"]]

    def _measure_rent(self, stage: Stage, web: Any) -> int:
        warm = self._order(stage, web, seconds=self.given.seconds * WARM_UP_SHARE, seed="warm")
        before = stage.cpu(web)
        seen = self._order(stage, web, seconds=self.given.seconds, seed="rent")
        after = stage.cpu(web)
        self.figures |= after.milliseconds_each(before, len(seen["answers"]))
        self.figures["others_cores"] = after.others_cores(before)
        offers_ms = self._read_offers(stage, web)
        took_ms = [1000 * seconds for code, seconds in seen["answers"] if code == "ok"]
        refusals = Counter(code for code, _ in seen["answers"] if code != "ok")
        self.figures |= {
            "launches_per_s": round(_accepted(seen) / seen["seconds"], 1),
            "p50_ms": round(machine.percentile(took_ms, 0.5), 1),
            "p95_ms": round(machine.percentile(took_ms, 0.95), 1),
            "p99_ms": round(machine.percentile(took_ms, 0.99), 1),
            "accepted": _accepted(seen),
            "refusals": dict(sorted(refusals.items())),
            "offers_p50_ms": round(machine.percentile(offers_ms, 0.5), 1),
            "offers_p95_ms": round(machine.percentile(offers_ms, 0.95), 1),
            "memory_mib": round(web.memory_mib, 1),
        }
        self.say(
            "{launches_per_s} launches/s, p50 {p50_ms} ms, p95 {p95_ms} ms, p99 {p99_ms} ms".format(**self.figures)
        )
        self.say("processor time of each: web {web_cpu_ms} ms, database {database_cpu_ms} ms".format(**self.figures))
        self.say("other programs kept {others_cores} cores busy meanwhile".format(**self.figures))
        self.say(f"refusals: {dict(refusals) or 'none'}; memory {self.figures['memory_mib']} MiB")
        self.say("GET /api/v1/offers p50 {offers_p50_ms} ms, p95 {offers_p95_ms} ms".format(**self.figures))
        return _accepted(warm) + _accepted(seen)

    def _measure_bare(self, stage: Stage) -> None:
        from tests.bench import world

        first, count = world.make_bare_assignments(self.given.clients, self.offers[0], self.customers.projects[0])
        seconds = min(self.given.seconds, 10)
        with stage.web(
            "tests.bench.bare:application",
            workers=self.given.workers,
            BENCH_ASSIGNMENTS=f"{first} {count}",
            BENCH_NODES="{} {}".format(*world.node_range()),
        ) as web:
            seen = stage.load(**self.job, method="POST", path="/claim", port=web.port, seconds=seconds, seed="bare")
        # Last, since on a small fleet it takes every GPU there is.
        pgbench = stage.run_pgbench(
            CLAIM,
            clients=self.given.clients,
            seconds=seconds,
            values=dict(zip(("first_node", "nodes"), world.node_range(), strict=True)) | {"first_assignment": first},
        )
        view = _accepted(seen) / seen["seconds"]
        rate = self.figures["launches_per_s"]
        self.figures |= {
            "pgbench_claims_per_s": round(pgbench, 1),
            "bare_view_claims_per_s": round(view, 1),
            "ratio_to_pgbench": round(rate / pgbench, 3),
            "ratio_to_bare_view": round(rate / view, 3) if view else None,
        }
        self.say(f"bare claim: pgbench {pgbench:.0f}/s, Django view {view:.0f}/s")

    def _verify(self, accepted: int) -> None:
        from tests.bench import world

        self.figures["faults"] = world.faults(accepted=accepted)
        sound = "every GPU held once, counts equal, books balanced"
        self.say(f"afterwards: {'; '.join(self.figures['faults']) or sound}")


def _accepted(seen: dict[str, Any]) -> int:
    return sum(code == "ok" for code, _ in seen["answers"])


if __name__ == "__main__":
    sys.exit(main())
