"""How fast and how tight placement is at 300,000 GPUs: in memory, and committed into PostgreSQL.

    uv run python -m tests.bench.placement --gpus 300000 --json

In memory: arrivals and departures around an allocation, chosen by the product's
choice, by first fit and by chance, with the share of gangs on the best level
that their size allows. Committed: claims by 1, 4 and 16 clients, beside the bare
claim of pgbench. docs/benchmarks.md explains the figures.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import schema
from tests.bench import machine, packing
from tests.bench.stage import ROOT, Stage, set_up

CLAIM = Path(__file__).with_name("claim.sql")
ALLOCATIONS = (0.85, 0.92)
CLIENTS = (1, 4, 16)
# As the web server runs: processes of several threads.
PROCESSES = 2
CLAIMS_PER_S_MAX = 6000


def main() -> int:
    """Run the benchmark; the last line of the output is JSON. Returns 1 when what it left behind is wrong."""
    given = _arguments()
    here = machine.facts()
    figures: dict[str, Any] = {"gpus": given.gpus, "faults": []}
    say = (lambda text: None) if given.json else (lambda text: print(text, flush=True))
    figures["in_memory"] = _in_memory(given, say)
    if not given.no_commits:
        with set_up() as stage:
            figures |= _commits(stage, given, say)
    print(machine.last_line("placement", figures, here))
    return 0 if figures["faults"] == [] else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench.placement", description=__doc__)
    parser.add_argument("--gpus", type=int, default=300_000, help="size of the fleet (default: 300000)")
    parser.add_argument("--arrivals", type=int, default=20_000, help="measured in memory (default: 20000)")
    parser.add_argument("--seconds", type=float, default=6, help="length of each measurement of commits (default: 6)")
    parser.add_argument("--no-commits", action="store_true", help="leave the database out")
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON")
    return parser.parse_args()


def _in_memory(given: argparse.Namespace, say: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"snapshot_mib": packing.snapshot_mib(given.gpus)}
    for share in ALLOCATIONS:
        for name in packing.WAYS:
            seen = packing.measure(name, gpus=given.gpus, share=share, arrivals=given.arrivals)
            found[f"{name}_{round(share * 100)}"] = seen
            say(f"{share:.0%} {name}: {json.dumps(seen)}")
    return found


def _commits(stage: Stage, given: argparse.Namespace, say: Any) -> dict[str, Any]:
    os.environ.update(stage.environ)
    import django

    django.setup()
    from tests.bench import world

    schema.fill()
    offers, customers = world.make_offers(), world.make_customers(4)
    world.grow(offers, gpus=given.gpus)
    first, _ = world.make_bare_assignments(max(CLIENTS), offers[0], customers.projects[0])
    found: dict[str, Any] = {"commits_per_s": {}, "pgbench_claims_per_s": {}, "ratio_to_pgbench": {}, "refused": 0}
    faults: list[str] = []
    for clients in CLIENTS:
        count = round(CLAIMS_PER_S_MAX * given.seconds)
        orders = world.make_orders(count, seed=f"c{clients}-", project_id=customers.projects[0])
        seen = _claim(stage, orders, clients=clients, seconds=given.seconds)
        faults += world.miscounts()
        world.empty()
        values = dict(zip(("first_node", "nodes"), world.node_range(), strict=True)) | {"first_assignment": first}
        bare = stage.run_pgbench(CLAIM, clients=clients, seconds=given.seconds, values=values)
        faults += world.miscounts()
        world.empty()
        rate = seen["claimed"] / given.seconds
        found["commits_per_s"][clients] = round(rate, 1)
        found["pgbench_claims_per_s"][clients] = round(bare, 1)
        found["ratio_to_pgbench"][clients] = round(rate / bare, 3)
        found["refused"] += seen["refused"]
        say(f"{clients} clients: {rate:.0f} commits/s, pgbench {bare:.0f}/s")
    return found | {"faults": faults}


def _claim(stage: Stage, orders: list[int], *, clients: int, seconds: float) -> dict[str, int]:
    processes = min(PROCESSES, clients)
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.bench.claims"], cwd=ROOT, env=stage.environ, stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE, text=True,
                )
            )
            for _ in range(processes)
        ]  # fmt: skip
        for number, process in enumerate(running):
            threads = clients // processes
            _tell(process, json.dumps({"instances": orders[number::processes], "threads": threads, "seconds": seconds}))
        for process in running:
            assert _heard(process) == "ready"
        for process in running:
            _tell(process, "go")
        told = [json.loads(_heard(process)) for process in running]
    return {name: sum(one[name] for one in told) for name in ("claimed", "refused", "left")}


def _tell(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _heard(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


if __name__ == "__main__":
    sys.exit(main())
