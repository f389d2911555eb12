"""Runs that are interrupted within their first interval: free where others outbid them, not where one's own bid did."""

from datetime import timedelta

import pytest
import time_machine
from django.db import transaction
from django.db.models import Sum
from django.utils import timezone

from billing import books
from billing.models import UsageSpan
from marketplace import spot, spot_terms
from marketplace.access import Actor, person
from marketplace.models import Bid, Project, User
from provisioning import interruptions
from provisioning.models import Instance, Interruption, Quota
from tests.conftest import Fleet, Run, order

pytestmark = pytest.mark.django_db

CENT = 10_000
INTERVAL_S, NOTICE_S = 60, 30


@pytest.mark.parametrize("is_own", [True, False])
def test_a_young_run_is_free_only_where_others_outbid_it(
    fleet: Fleet, project: Project, actor: Actor, charlie: User, run_until_idle: Run, is_own: bool
) -> None:
    other = Project.objects.select_related("organization").get(organization__name="Other")
    for one in (project, other):
        Quota.objects.filter(project=one).update(limit=1000)
    spot_terms.set_terms(
        offer=fleet.h200, by="carol@operator.example", at=timezone.now(), reserve_micros=50 * CENT, grid_micros=CENT,
        interval_s=INTERVAL_S, min_notice_s=NOTICE_S,
    )  # fmt: skip

    def bid(who: Actor, where: Project, cents: int, replicas: int) -> Bid:
        with transaction.atomic():
            return spot.bid(
                actor=who, project=where, order=order(fleet.h200, gpus=8, replicas=replicas),
                max_price_micros=cents * CENT, at=timezone.now(),
            )  # fmt: skip

    started = timezone.now().replace(second=1, microsecond=0) + timedelta(minutes=1)
    with time_machine.travel(started, tick=False) as clock:

        def follow(seconds: float) -> None:
            clock.shift(timedelta(seconds=seconds))
            spot.clear(offer_id=fleet.h200.pk, at=timezone.now())
            interruptions.announce_due(at=timezone.now(), limit=9)
            run_until_idle()
            interruptions.settle_due(at=timezone.now(), limit=9)

        young = bid(actor, project, 60, replicas=2)
        follow(INTERVAL_S)
        bid(*((actor, project) if is_own else (person(charlie), other)), cents=100, replicas=1)
        follow(INTERVAL_S - 1)
        follow(NOTICE_S)
        assert Instance.objects.get(pk=young.instance_id).phase == "interrupted"
        told = Interruption.objects.get()
        spans = UsageSpan.objects.filter(resource_id=young.instance.public_id)
        charged = spans.aggregate(micros=Sum("charged_micros"))["micros"]
        assert (told.reason, told.state) == ("outbid", "interrupted")
        assert told.credited_micros == (0 if is_own else charged)
        assert charged > 0
        assert books.check(at=timezone.now()) == []
