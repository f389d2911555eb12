"""How many reservations are booked each second: a quote used, money taken, hours committed.

    uv run python -m tests.bench.bookings --seconds 10 --clients 4 --json

Fills a database of its own with a fleet and customers, quotes blocks of 24 to
144 hours (84 on average) in the year ahead, then lets processes buy them by
the product's own verb, each purchase in a transaction of its own, and checks
the books, the calendar and the money paid ahead. docs/benchmarks.md explains
the figures.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

from tests import schema
from tests.bench import machine
from tests.bench.stage import Stage, set_up

GPUS, CUSTOMERS, HOURS_AHEAD = 48_000, 32, 24 * 300


def main() -> int:
    """Run the benchmark; the last line of the output is JSON. Returns 1 when what it left behind is wrong."""
    parser = argparse.ArgumentParser("python -m tests.bench.bookings", description=__doc__)
    parser.add_argument("--clients", type=int, default=4, help="processes that buy (default: 4)")
    parser.add_argument("--seconds", type=float, default=10, help="length of the measurement (default: 10)")
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        return _client(json.loads(given.client))
    here = machine.facts()
    with set_up() as stage:
        os.environ |= stage.environ
        figures = run(stage, clients=given.clients, seconds=given.seconds)
    print(machine.last_line("bookings", figures, here))
    return 0 if figures["faults"] == [] else 1


def run(stage: Stage, *, clients: int, seconds: float) -> dict[str, Any]:
    """Return bookings per second of so many processes, in the database that the environment names."""
    import django

    django.setup()

    schema.fill()
    projects, offers = _world()
    each = max(1, len(projects) // clients)
    jobs = [
        {"projects": projects[n * each : (n + 1) * each], "offers": offers, "seconds": seconds, "seed": n}
        for n in range(clients)
    ]
    # The word of each client's start and end goes through its pipes, so that all begin at the same moment.
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.bookings", "--client", json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for job in jobs
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    database_began = stage.database_cpu_s()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    database_cpu_s = stage.database_cpu_s() - database_began
    times = [one for answer in said for one in answer["times_ms"]]
    booked = sum(answer["booked"] for answer in said)
    return {
        "clients": clients,
        "booked": booked,
        "refused": sum(answer["refused"] for answer in said),
        "bookings_per_s": round(sum(answer["booked"] / answer["seconds"] for answer in said)),
        "quotes_per_s": round(sum(answer["quotes_per_s"] for answer in said)),
        "client_cpu_ms_each": round(1000 * sum(answer["cpu_s"] for answer in said) / max(1, booked), 2),
        "database_cpu_ms_each": round(1000 * database_cpu_s / max(1, booked), 2),
        "p50_ms": machine.percentile(times, 0.5),
        "p99_ms": machine.percentile(times, 0.99),
        "faults": _faults(),
    }


def _world() -> tuple[list[int], list[int]]:
    from django.utils import timezone

    from marketplace.models import BlockTerms
    from provisioning import calendar
    from tests.bench import world
    from tests.blocks import sell_blocks

    offers, customers = world.make_offers(), world.make_customers(CUSTOMERS)
    world.grow(offers, gpus=GPUS)
    for offer in offers:
        sell_blocks(offer)
    BlockTerms.objects.update(max_gpus=GPUS)
    calendar.count(at=timezone.now())
    return customers.projects, [offer.pk for offer in offers]


def _client(job: dict[str, Any]) -> int:
    """Quote blocks, say so, buy them when told, and write what was seen."""
    import django

    django.setup()
    from django.db import transaction
    from django.utils import timezone

    from billing.errors import BillingError
    from marketplace import reservations
    from marketplace.errors import MarketError
    from provisioning.errors import ProvisioningError

    began = time.monotonic()
    quoted, actor = _quotes(job, int(job["seconds"] * 200))
    quotes_per_s = len(quoted) / (time.monotonic() - began)
    print("ready", flush=True)
    sys.stdin.readline()
    booked = refused = 0
    times = []
    began, cpu_began = time.monotonic(), time.process_time()
    while quoted and time.monotonic() - began < job["seconds"]:
        at = time.monotonic()
        try:
            with transaction.atomic():  # As a POST is answered.
                reservations.buy(actor=actor, quote=quoted.pop(), at=timezone.now())
            booked += 1
        except (BillingError, MarketError, ProvisioningError):
            refused += 1
        times.append(round(1000 * (time.monotonic() - at), 2))
    spent = time.monotonic() - began
    seen = {"booked": booked, "refused": refused, "seconds": spent, "times_ms": times, "quotes_per_s": quotes_per_s}
    seen["cpu_s"] = time.process_time() - cpu_began
    print(json.dumps(seen), flush=True)
    return 0


def _quotes(job: dict[str, Any], count: int) -> tuple[list[Any], Any]:
    from django.utils import timezone

    from marketplace import quotes
    from marketplace.access import person
    from marketplace.blocks import Window
    from marketplace.models import Offer, Project, User
    from provisioning.calendar import HOUR, hour_of

    rng = random.Random(job["seed"])
    projects = list(Project.objects.select_related("organization").filter(pk__in=job["projects"]))
    offers = list(Offer.objects.filter(pk__in=job["offers"]))
    first = hour_of(timezone.now()) + 2 * HOUR
    made = []
    for _ in range(count):
        starts_at = first + rng.randrange(HOURS_AHEAD) * HOUR
        ends_at = starts_at + rng.randrange(24, 145) * HOUR
        window = Window(rng.choice(offers), rng.choice((1, 2, 4, 8)), starts_at, ends_at)
        made.append(quotes.for_purchase(project=rng.choice(projects), window=window, at=timezone.now()))
    return made, person(User.objects.order_by("pk")[0])


def _faults() -> list[str]:
    from django.utils import timezone

    from tests.blocks import check_conserved

    at = timezone.now() + timedelta(seconds=1)
    try:
        check_conserved(at=at)
    except AssertionError as fault:
        return [str(fault)[:500] or "hours, money or books are wrong"]
    return []


if __name__ == "__main__":
    sys.exit(main())
