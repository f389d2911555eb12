"""Plain makers for the till: each states only what is ordinary."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from django.apps import apps
from django.db import connection, connections, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import QuerySet

from billing import accounts, credits, holds, ledger, prices, usage
from billing.models import Account
from billing.models.ledger import CUSTOMER_KINDS
from billing.prepayments import Block

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
USD = 1_000_000
PRICE = 2_500_000  # micros per GPU-hour

numbers = count(1)


def make_organization(*, promo=0, cash=0, currency="USD"):
    organization = apps.get_model("marketplace", "Organization").objects.create(
        name=f"Organization {next(numbers)}", currency=currency
    )
    accounts.open_for(organization=organization)
    if promo:
        grant(organization, promo)
    if cash:
        pay_in(organization, cash)
    return organization


def grant(organization, amount_micros, *, key=None, at=NOON):
    return credits.grant(
        organization=organization,
        amount_micros=amount_micros,
        key=key or f"grant-{next(numbers)}",
        reason="Welcome",
        by="operator@example.com",
        at=at,
    )


def pay_in(organization, amount_micros, *, key=None):
    return move("processor", account(organization, "cash"), amount_micros, key=key)


def move(source, target, amount_micros, *, key=None):
    if isinstance(source, str):
        source = accounts.platform(source, target.currency)
    if isinstance(target, str):
        target = accounts.platform(target, source.currency)
    return ledger.transfer(
        key=key or f"move-{next(numbers)}",
        source=source,
        target=target,
        amount_micros=amount_micros,
        reason="Test",
        at=NOON,
    )


def account(organization, kind):
    return organization.accounts.get(kind=kind)


def hold_money(organization, amount_micros, *, key=None, resource_id="ins_1", expires_at=NOON + HOUR):
    with nullcontext() if connection.in_atomic_block else transaction.atomic():
        return holds.place(
            key=key or f"first-hour:{resource_id}:{next(numbers)}",
            organization=organization,
            amount_micros=amount_micros,
            purpose="first hour",
            resource_id=resource_id,
            expires_at=expires_at,
        )


def block(kind="reservation", rows=((1, 1, USD),), *, resource_id="rsv_1", begin=NOON + 24 * HOUR, kept=0):
    """Return hours that are paid ahead, a day later if nothing else is said."""
    end = begin + max(hours for _, hours, _ in rows) * HOUR
    return Block(kind, resource_id, "H100 in Narvik", "prj_1", begin, end, rows, kept_micros=kept)


def make_price(*, micros_per_unit_hour=PRICE, sku="ofr_1/on_demand", currency="USD", unit="gpu"):
    return prices.publish(
        sku=sku,
        currency=currency,
        micros_per_unit_hour=micros_per_unit_hour,
        effective_from=NOON - HOUR,
        by="operator@example.com",
        at=NOON - HOUR,
        unit=unit,
    )


def start(organization, *, resource_id="ins_1", at=NOON, **overrides):
    ordinary = {
        "resource_name": "trainer",
        "labels": {"project": "prj_1"},
        "quantity": 2,
        "price_version": overrides.pop("price_version", None) or make_price(),
    }
    return usage.start(organization=organization, resource_id=resource_id, at=at, **(ordinary | overrides))


def wallet(organization):
    return accounts.wallet(organization=organization)


def at_the_same_moment(*calls: Callable[[], object]) -> list[str]:
    """Run each call in a thread and a connection of its own; return the sorted names of what came out."""
    barrier = threading.Barrier(len(calls))
    outcomes = []

    def run(call):
        try:
            barrier.wait(timeout=10)
            call()
            outcomes.append("done")
        except Exception as error:
            outcomes.append(type(error).__name__)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return sorted(outcomes)


def gate(organization, *, kinds=CUSTOMER_KINDS) -> QuerySet[Account]:
    return Account.objects.filter(organization_id=organization.pk, kind__in=kinds)


def behind(rows: QuerySet[Any], *calls: Callable[[], object]) -> list[str]:
    """Lock rows until all calls wait behind them, queued in this order; return the sorted names of what came out."""

    def run(call):
        try:
            call()
        except Exception as error:
            return type(error).__name__
        finally:
            connections.close_all()
        return "done"

    with ThreadPoolExecutor(len(calls)) as pool:
        with transaction.atomic(), connection.cursor() as cursor:
            list(rows.select_for_update())
            came = []
            for call in calls:
                came.append(pool.submit(run, call))
                deadline = time.monotonic() + 20
                while _waiting(cursor) + sum(one.done() for one in came) < len(came):
                    assert time.monotonic() < deadline, "a call neither ended nor waits for what is locked"
                    time.sleep(0.01)
        return sorted(one.result(timeout=30) for one in came)


def _waiting(cursor: CursorWrapper) -> int:
    """Return how many sessions of this database wait for a lock; other databases of the server are other tests'."""
    cursor.execute("""
        SELECT count(DISTINCT late.pid) FROM pg_locks late JOIN pg_locks own USING (pid)
        WHERE NOT late.granted AND own.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """)
    return int(cursor.fetchone()[0])


def meeting(*, patience_s: float) -> Callable[[], None]:
    """Return what waits until another thread got there too, once; whoever waits longer than that goes on alone."""
    barrier, over = threading.Barrier(2), threading.Event()

    def wait() -> None:
        if not over.is_set():
            with suppress(threading.BrokenBarrierError):
                barrier.wait(timeout=patience_s)
            over.set()

    return wait


def while_it_waits(
    holds: Callable[[], None], waits: Callable[[], None], *, then: Callable[[], object] = lambda: None
) -> None:
    """Let `waits` begin, and wait for a lock, before what `holds` did in a transaction of its own is there.

    `then` goes on in that transaction while the other waits.
    """

    def other() -> None:
        try:
            waits()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            holds()
            late = pool.submit(other)
            until = time.monotonic() + 20
            with connection.cursor() as cursor:
                while time.monotonic() < until and not late.done():
                    cursor.execute("SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY "
                                   "(pg_blocking_pids(pid))")  # fmt: skip
                    if cursor.rowcount:
                        break
                    time.sleep(0.01)
                else:
                    raise AssertionError("nothing waits for what is locked")
            then()
        late.result(20)
