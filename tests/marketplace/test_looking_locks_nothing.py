"""Whoever only looks how many GPUs an offer has neither locks nor writes what everybody locks last."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from marketplace import outlook, spot, spot_terms, waiting
from marketplace.access import Actor
from marketplace.errors import BadOrder
from marketplace.models import Project
from provisioning import calendar, quotas
from provisioning.models import Capacity, Node
from tests.blocks import Buyer, sell_blocks
from tests.conftest import Fleet, order

pytestmark = pytest.mark.django_db

CAPACITY = Capacity._meta.db_table
Statements = Callable[[], list[str]]


@contextmanager
def touching_capacity() -> Iterator[Statements]:
    """Hand out what locked or changed the capacity's row within."""
    with CaptureQueriesContext(
        connection,
    ) as captured:
        yield lambda: [
            one["sql"] for one in captured.captured_queries
            if CAPACITY in one["sql"] and any(word in one["sql"] for word in ("UPDATE", "INSERT", "DELETE"))
        ]  # fmt: skip


@pytest.fixture(params=[False, True], ids=["never counted", "counted too few"])
def counted(request: pytest.FixtureRequest, fleet: Fleet, project: Project) -> Fleet:
    """The last count knows of no GPU, or there was none."""
    quotas.set_limit(project_id=project.pk, limit=100)
    if request.param:
        calendar.count(at=timezone.now())
        Capacity.objects.update(gpus=0)
    return fleet


def test_a_quote_counts_what_is_there(counted: Fleet, actor: Actor, project: Project) -> None:
    sell_blocks(counted.h200)
    noon = calendar.hour_of(timezone.now()) + calendar.HOUR
    buyer = Buyer(actor, project, counted.h200, noon)
    with touching_capacity() as statements:
        quote = buyer.quote(16, 0, 2)
        assert statements() == []
    assert quote.gpus == 16


def test_a_bid_for_more_than_was_counted_looks_what_is_there(counted: Fleet, actor: Actor, project: Project) -> None:
    terms = spot_terms.set_terms(offer=counted.h200, by="x", at=timezone.now(), reserve_micros=500_000)
    with touching_capacity() as statements:
        with transaction.atomic():
            spot.bid(
                actor=actor, project=project, order=order(counted.h200, gpus=8, replicas=2), max_price_micros=1_000_000,
                at=timezone.now(),
            )  # fmt: skip
        assert statements() == []
        Node.objects.filter(name="h200-1").update(state="retired")
        with pytest.raises(BadOrder, match="8 GPUs that an auction could ever give"):
            spot.check_capacity(terms, 16)
        assert statements() == []


def test_an_outlook_sees_what_is_there(counted: Fleet, project: Project) -> None:
    with touching_capacity() as statements:
        found = outlook.look(project=project, offer=counted.h200, gpus=8, replicas=2, at=timezone.now())
        assert statements() == []
    assert found.fits_now


def test_an_order_that_waits_locks_the_capacity_last(counted: Fleet, actor: Actor, project: Project) -> None:
    at = timezone.now()
    with CaptureQueriesContext(connection) as captured:
        waiting.wait(
            actor=actor, project=project, order=order(counted.h200, gpus=8, replicas=2), max_micros_per_gpu_hour=1,
            until=at + timedelta(hours=1), at=at,
        )  # fmt: skip
    said = [one["sql"] for one in captured.captured_queries]
    locks = [number for number, sql in enumerate(said) if CAPACITY in sql and "UPDATE" in sql]
    writes = [number for number, sql in enumerate(said) if "INSERT INTO" in sql and CAPACITY not in sql]
    assert min(locks) > max(writes)
