"""The hourly close of a large fleet: what it fills, what it measures, and what PostgreSQL needs for the same rows."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.bench.stage import cpu_s
from tests.bench.sweeps import PARTS, Sweeps

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
SKUS = 12
SPANS_EACH = 100  # of an average organization; the largest has some hundred times as many
ENDED_EACH = 6  # one of so many ended in the first hour and was not charged yet, as use that is reported late
HELD_EACH = 20  # one of so many has its first hour set aside
BATCH = 5_000
VERBS = 300

# Organizations of very different sizes: the tenth part of them has half of all spans.
SPANS = """
INSERT INTO billing_usagespan
    (public_id, organization_id, resource_id, resource_name, labels, meter, quantity, price_version_id, covered_by,
     started_at, ended_at, charged_micros, charged_through, invoiced_micros)
SELECT 'spn_' || n, organization, 'ins_' || n, 'trainer ' || n,
       '{"project": "prj_bench", "market": "on_demand", "gpu": "H100"}', 'gpu', 1, price, '', began,
       CASE WHEN n %% %(ended_each)s = 0 THEN %(begin)s + interval '59 minutes' END, 0, began, 0
FROM (
    SELECT n, (%(organizations)s::bigint[])[1 + trunc(power(random(), 3) * cardinality(%(organizations)s::bigint[]))]
               AS organization,
           (%(prices)s::bigint[])[1 + n %% cardinality(%(prices)s::bigint[])] AS price,
           %(begin)s + n %% 1800000 * interval '1 millisecond' AS began
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) n
) planned
"""
HOLDS = """
WITH placed AS (
    INSERT INTO billing_hold
        (public_id, key, account_id, amount_micros, posted_micros, state, purpose, resource_id, expires_at)
    SELECT 'hld_' || span.id, 'first-hour:' || resource_id, account.id, 1000000, 0, 'pending', 'first hour',
           resource_id, %(begin)s + interval '7 days'
    FROM billing_usagespan span JOIN billing_account account
        ON account.organization_id = span.organization_id AND account.kind = 'cash'
    WHERE span.id %% %(held_each)s = 0 AND NOT EXISTS (
        SELECT FROM billing_hold WHERE key = 'first-hour:' || span.resource_id
    ) AND account.balance_micros > 0
    RETURNING account_id, amount_micros
)
UPDATE billing_account SET held_micros = held_micros + total
FROM (SELECT account_id, sum(amount_micros) AS total FROM placed GROUP BY account_id) added
WHERE account_id = billing_account.id
"""
RUNWAYS = """
INSERT INTO billing_runway (organization_id, burn_micros_per_hour, funds_micros, as_of)
SELECT span.organization_id, sum(span.quantity * coalesce(last.micros_per_unit_hour, price.micros_per_unit_hour)),
       0, %(at)s
FROM billing_usagespan span JOIN billing_priceversion price ON price.id = span.price_version_id
LEFT JOIN LATERAL (
    SELECT * FROM billing_pricepoint WHERE price_version_id = price.id ORDER BY starts_at DESC LIMIT 1
) last ON true
WHERE ended_at IS NULL GROUP BY span.organization_id
ON CONFLICT (organization_id) DO UPDATE SET burn_micros_per_hour = excluded.burn_micros_per_hour
"""
# The least that a close writes, from rows that it has written: no rating, no locks, no order of paying.
BARE_CLOSE = (
    "UPDATE bare_span SET charged_micros = span.charged_micros, charged_through = span.charged_through "
    "FROM billing_usagespan span WHERE span.id = bare_span.id AND span.charged_through > bare_span.charged_through",
    "INSERT INTO bare_charge SELECT * FROM billing_charge WHERE id > %(charge)s",
    "INSERT INTO bare_transfer SELECT * FROM billing_transfer WHERE id > %(transfer)s",
)


@dataclass
class Watch:
    """What some work took: seconds, and seconds of the processor here and in the database."""

    database_pid: int
    wall_s: float = 0
    python_cpu_s: float = 0
    database_cpu_s: float = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        began, python, database = time.monotonic(), time.process_time(), cpu_s(self.database_pid)
        yield
        self.wall_s += time.monotonic() - began
        self.python_cpu_s += time.process_time() - python
        self.database_cpu_s += cpu_s(self.database_pid) - database

    @property
    def cpu_s(self) -> float:
        return self.python_cpu_s + self.database_cpu_s

    def figures(self, name: str) -> dict[str, float]:
        return {
            f"{name}_s": round(self.wall_s, 2),
            f"{name}_python_cpu_s": round(self.python_cpu_s, 2),
            f"{name}_database_cpu_s": round(self.database_cpu_s, 2),
        }


def run(count: int, database_pid: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Close two hours of a quarter of the spans and two of all, and check what that left."""
    from billing import books

    with Sweeps() as sweeps:
        fleet = Fleet(max(1, count // SPANS_EACH), database_pid, sweeps)
        figures: dict[str, Any] = {"spans": count, "organizations": len(fleet.organizations), "sweeps": PARTS}
        say("A quarter of the spans ...")
        fleet.grow(count // 4)
        fleet.close(BEGIN + HOUR)
        quarter = fleet.close(BEGIN + 2 * HOUR)
        say("All of the spans ...")
        figures |= fleet.grow(count).figures("bare_ingest")
        figures |= fleet.close(BEGIN + 3 * HOUR).figures("first_close")
        say("All of the spans, an hour later ...")
        whole, bare = fleet.close_beside_bare(BEGIN + 4 * HOUR)
        say("Moving money, opening and closing meters ...")
        figures |= fleet.post(max(1_000, count // 4))
        figures |= fleet.meter(min(VERBS, count // 20))
        say("Taking up use that was measured elsewhere ...")
        figures |= fleet.ingest(max(1_000, count // 4))
    figures |= whole.figures("close") | bare.figures("bare_close")
    figures |= {
        "spans_per_s": round(count / whole.wall_s),
        "ratio_to_bare": round(bare.wall_s / whole.wall_s, 2),
        "cpu_ratio_to_bare": round(bare.cpu_s / whole.cpu_s, 2),
        **quarter.figures("quarter_close"),
        "growth": round(whole.cpu_s / count / (quarter.cpu_s / (count // 4)), 2),
        "rewritten_in_place": fleet.rewritten_in_place(),
        "memory_mib": round(sweeps.memory_kib / 2**10),
        "backend_memory_mib": round(sweeps.backend_memory_kib / 2**10),
    }
    say("Checking ...")
    figures["close_faults"] = [f"{one.rule}: {one.subject}: {one.detail}" for one in books.check(at=BEGIN + 5 * HOUR)][
        :20
    ]
    return figures


class Fleet:
    """Organizations with money, prices that stand and prices that float, and spans that run at them."""

    def __init__(self, organizations: int, database_pid: int, sweeps: Sweeps) -> None:
        from billing import accounts, floating
        from billing.models import Account, PriceVersion, Transfer
        from marketplace.models import Organization

        self.database_pid, self.sweeps = database_pid, sweeps
        self.spans = 0
        self.organizations = Organization.objects.bulk_create(
            [Organization(name=f"Renter {number}") for number in range(organizations)]
        )
        self.prices = PriceVersion.objects.bulk_create(
            [
                PriceVersion(sku=f"flat-{number}", currency="USD", micros_per_unit_hour=2_490_000 + number,
                             effective_from=BEGIN - HOUR, published_at=BEGIN - HOUR, published_by="bench")
                for number in range(SKUS)
            ]
        )  # fmt: skip
        for number in range(SKUS):
            series = floating.open_series(
                sku=f"spot-{number}", currency="USD", micros_per_unit_hour=900_000, by="bench", at=BEGIN - HOUR
            )
            for turn in range(1, 72):  # every five minutes, from an hour before the first span to an hour after all
                floating.append(series=series, micros_per_unit_hour=900_000 + turn % 7 * 1_000,
                                at=BEGIN - HOUR + turn * 5 * MINUTE)  # fmt: skip
            self.prices.append(series)
        processor, expense = (accounts.platform(kind, "USD") for kind in ("processor", "promo_expense"))
        rows = Account.objects.bulk_create(
            [
                Account(organization=one, kind=kind, currency="USD", balance_micros=self._money(number, kind))
                for number, one in enumerate(self.organizations)
                for kind in ("promo", "cash", "receivable")
            ]
        )
        Transfer.objects.bulk_create(
            [
                Transfer(key=f"money:{row.pk}", source=processor if row.kind == "cash" else expense, target=row,
                         amount_micros=row.balance_micros, reason="bench", effective_at=BEGIN)
                for row in rows
                if row.balance_micros
            ]
        )  # fmt: skip
        self.cash = [row for row in rows if row.kind == "cash" and row.balance_micros]

    @staticmethod
    def _money(number: int, kind: str) -> int:
        """A third have credit that lasts for some hours, and a tenth have nothing but that."""
        if kind == "promo":
            return 500_000_000 if number % 3 == 0 else 0
        return 10**12 if kind == "cash" and number % 10 else 0

    def grow(self, running: int) -> Watch:
        """Have so many spans run, and say how long PostgreSQL took to write those that are new."""
        from django.db import connection

        watch, spans = Watch(self.database_pid), running * ENDED_EACH // (ENDED_EACH - 1)
        given = {
            "organizations": [one.pk for one in self.organizations], "prices": [one.pk for one in self.prices],
            "begin": BEGIN, "at": BEGIN, "first": self.spans + 1, "last": spans, "ended_each": ENDED_EACH,
            "held_each": HELD_EACH,
        }  # fmt: skip
        with connection.cursor() as cursor:
            with watch.running():
                cursor.execute(SPANS, given)
            cursor.execute(HOLDS, given)
            cursor.execute(RUNWAYS, given)
            cursor.execute("VACUUM ANALYZE billing_usagespan, billing_hold, billing_account")
        self.spans = spans
        return watch

    def rewritten_in_place(self) -> float:
        """Return which share of all changes of spans touched no index."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT n_tup_hot_upd::numeric / n_tup_upd FROM pg_stat_user_tables WHERE relname = 'billing_usagespan'"
            )
            return round(float(cursor.fetchone()[0]), 2)

    def close(self, at: datetime) -> Watch:
        from billing import charging

        watch = Watch(self.database_pid)
        with watch.running():
            _, python_cpu_s = self.sweeps.run(at, limit=10 * self.spans)
        watch.python_cpu_s += python_cpu_s
        assert charging.charge_due(at=at, limit=10 * self.spans) == 0, "all that is due is charged at once"
        return watch

    def close_beside_bare(self, at: datetime) -> tuple[Watch, Watch]:
        """Close an hour, then have PostgreSQL write the same rows by one statement a table."""
        from django.db import connection

        from billing.models import Charge, Transfer

        with connection.cursor() as cursor:
            for name, table in (("span", "usagespan"), ("charge", "charge"), ("transfer", "transfer")):
                cursor.execute(f"CREATE TABLE bare_{name} (LIKE billing_{table} INCLUDING ALL) WITH (fillfactor = 85)")
            columns = "id, public_id, organization_id, resource_id, resource_name, labels, meter, quantity, " \
                "price_version_id, covered_by, started_at, ended_at, charged_micros, charged_through, " \
                "invoiced_micros, invoiced_through"  # fmt: skip
            cursor.execute(f"INSERT INTO bare_span ({columns}) SELECT {columns} FROM billing_usagespan")
            cursor.execute("VACUUM ANALYZE bare_span")
        last = {"charge": Charge.objects.latest("pk").pk, "transfer": Transfer.objects.latest("pk").pk}
        ours, bare = self.close(at), Watch(self.database_pid)
        with connection.cursor() as cursor, bare.running():
            for statement in BARE_CLOSE:
                cursor.execute(statement, last)
        return ours, bare

    def post(self, count: int) -> dict[str, float]:
        """Move money many times, in batches, and beside that write the same rows barely."""
        from django.db import connection, transaction

        from billing import accounts, ledger
        from billing.models import Transfer

        revenue = accounts.platform("revenue", "USD")
        last = Transfer.objects.latest("pk").pk
        ours, bare = Watch(self.database_pid), Watch(self.database_pid)
        with ours.running():
            for begin in range(0, count, BATCH):
                with transaction.atomic():
                    chosen = [self.cash[n % len(self.cash)] for n in range(begin, min(begin + BATCH, count))]
                    accounts.lock_all({one.organization_id for one in chosen if one.organization_id})
                    ledger.move_all([
                        Transfer(key=f"post:{begin + n}", source=one, target=revenue, amount_micros=1, reason="bench",
                                 effective_at=BEGIN)
                        for n, one in enumerate(chosen)
                    ])  # fmt: skip
        with connection.cursor() as cursor, bare.running():
            cursor.execute("INSERT INTO bare_transfer SELECT * FROM billing_transfer WHERE id > %s", [last])
        return {
            "entries_per_s": round(2 * count / ours.wall_s),
            "bare_entries_per_s": round(2 * count / bare.wall_s),
            **ours.figures("post"),
        }

    def ingest(self, count: int) -> dict[str, float]:
        """Take up use that was measured elsewhere, in sets, and beside that write the same rows barely."""
        from django.db import connection, transaction

        from billing import recording
        from billing.models import UsageSpan
        from billing.recording import Recorded

        last = UsageSpan.objects.latest("pk").pk
        ours, bare = Watch(self.database_pid), Watch(self.database_pid)
        told = [
            Recorded(self.organizations[n % len(self.organizations)].pk, f"ext_{n}", "trainer", {"market": "on_demand"},
                     "gpu", 1, self.prices[n % len(self.prices)].pk, BEGIN + n % 1000 * MINUTE / 1000,
                     BEGIN + HOUR + n % 1000 * MINUTE / 1000)
            for n in range(count)
        ]  # fmt: skip
        with ours.running():
            for begin in range(0, count, BATCH):
                recording.record_many(told[begin : begin + BATCH], at=BEGIN + 4 * HOUR)
        columns = "id, public_id, organization_id, resource_id, resource_name, labels, meter, quantity, " \
            "price_version_id, covered_by, started_at, ended_at, charged_micros, charged_through, " \
            "invoiced_micros"  # fmt: skip
        with connection.cursor() as cursor, bare.running(), transaction.atomic():
            cursor.execute(
                f"INSERT INTO bare_span ({columns}) SELECT {columns} FROM billing_usagespan WHERE id > %s",
                [last],
            )
        self.close(BEGIN + 4 * HOUR)
        return {
            "ingested_per_s": round(count / ours.wall_s),
            "bare_ingested_per_s": round(count / bare.wall_s),
            "ingested_per_cpu_s": round(count / ours.cpu_s),
            **ours.figures("ingest"),
        }

    def meter(self, count: int) -> dict[str, float]:
        """Open and close meters with the verbs that a launch and a stop call, each committed by itself."""
        from billing import usage

        opened, closed = Watch(self.database_pid), Watch(self.database_pid)
        small = self.organizations[-50:]
        with opened.running():
            for number in range(count):
                usage.start(
                    organization=small[number % len(small)], resource_id=f"verb_{number}",
                    resource_name="trainer", labels={}, quantity=1, at=BEGIN + 4 * HOUR,
                    price_version=self.prices[number % len(self.prices)],
                )  # fmt: skip
        with closed.running():
            for number in range(count):
                usage.stop(resource_id=f"verb_{number}", at=BEGIN + 4 * HOUR + MINUTE)
        return {
            "meters_opened_per_s": round(count / opened.wall_s),
            "meters_closed_per_s": round(count / closed.wall_s),
            **opened.figures("open"),
            **closed.figures("stop"),
        }
