"""Real demand through the real verbs: the jobs of a trace as orders of tenants, on a virtual clock.

    uv run python -m tests.bench.replay tests/data/philly_jobs_head.csv --gpus 2048 --speed max --json

Fills a database of its own. Each virtual cluster is a customer. A job rents on
demand, bids on the spot market with what its tenant will pay, or reserves the
cheapest free window that holds it and runs inside; what finds nothing free
waits in the queue. Every other tenant lends what stands idle of its blocks to
spot, and takes it back when the job begins. Nodes are played in bulk, so an instance is
ready at once and ends when its job did in the trace. An interrupted job goes on
where it was. The clock stops at the last submission. At the end nothing may be wrong: docs/benchmarks.md explains the
figures, tests/data/README.md where the jobs are from.
"""

import argparse
import itertools
import logging
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
import time_machine

from tests import schema
from tests.bench import machine
from tests.bench.stage import set_up
from tests.bench.trace import read


def main() -> int:
    """Run the replay; the last line of the output is JSON. Returns 1 on any fault."""
    given = _arguments()
    here = machine.facts()
    with set_up() as stage:
        os.environ.update(stage.environ)
        import django

        django.setup()
        from tests.bench.played import Replay

        schema.fill()
        logging.disable(logging.CRITICAL)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        begin = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
        jobs = list(itertools.islice(read(given.trace, begin=begin, skip=given.skip), given.jobs))
        began = time.perf_counter()
        with time_machine.travel(begin, tick=False) as clock:
            replay = Replay(clock=clock, jobs=jobs, gpus=given.gpus, speed=given.speed)
            figures = replay.run()
        figures["took_s"] = round(time.perf_counter() - began, 1)
    print(machine.last_line("replay", figures, here))
    return 0 if figures["faults"] == [] else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench.replay", description=__doc__)
    parser.add_argument("trace", type=Path, help="a CSV of jobs: submitted_at, duration_s, gpus, virtual_cluster")
    parser.add_argument("--gpus", type=int, default=2048, help="GPUs of the fleet (default: 2048)")
    parser.add_argument("--jobs", type=int, help="the first jobs of the trace only (default: all)")
    parser.add_argument("--skip", type=int, default=0, help="jobs to leave out at the beginning (default: 0)")
    parser.add_argument("--speed", default="max", help="virtual seconds in one of ours, or max (default)")
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
