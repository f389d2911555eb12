"""Plain makers for money for results."""

from billing.outcomes import escrows, reversing, settling
from billing.outcomes.words import Item, Share
from tests.billing.makers import NOON, USD

VERSION = "ctv_1"
JOB = "job_1"


def item(subject="task 0", *, quantity=1, micros_per_unit=USD, **overrides):
    ordinary = {"name": "Rendered frame", "project": "prj_1", "unit": "frames", "version": VERSION}
    return Item(subject=subject, quantity=quantity, micros_per_unit=micros_per_unit, **(ordinary | overrides))


def set_aside(organization, micros, *, resource_id=JOB, version=VERSION, at=NOON):
    return escrows.escrow(
        organization=organization, resource_id=resource_id, amount_micros=micros, reason="Frames", version=version,
        at=at,
    )  # fmt: skip


def settle(organization, sold, *, key=None, micros=None, shares=None, resource_id=JOB, at=NOON, period=None):
    due = settling.Due(
        key or f"settle:{sold.subject}", sold.asked_micros if micros is None else micros,
        shares or [Share(None, 10_000)], sold, period,
    )  # fmt: skip
    (paid,) = settling.settle_all(organization=organization, resource_id=resource_id, due=[due], at=at)
    return paid


def reverse(of, micros=None, *, key=None, at=NOON):
    return reversing.reverse(key=key or f"reverse:{of.key}", of=of, amount_micros=micros, reason="It was wrong", at=at)


def release(micros=None, *, key="release", resource_id=JOB, at=NOON):
    return escrows.release(resource_id=resource_id, key=key, amount_micros=micros, at=at)
