"""The page of disputes: whatever was decided since, those that are open come first."""

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from marketplace.access import Actor
from marketplace.contracts import answering, disputing, sweeping
from marketplace.models import Organization, Project, Side
from marketplace.portal import outcomes
from tests.marketplace.portal.reading import faults, read
from tests.outcomes import BY_CUSTOMER, make_deal

pytestmark = pytest.mark.django_db


def test_an_open_dispute_comes_before_however_many_were_decided_after_it(
    owner: Client, acme: Organization, project: Project, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "PAGE", 2)
    deal, at, found = make_deal(acme, **BY_CUSTOMER), timezone.now(), []
    for number in range(4):
        claim = deal.claim(project, f"frame {number}", at=at)
        answering.accept(actor=actor, claim=claim, at=at)
        sweeping.advance(at=at, limit=10)
        found.append(disputing.open(actor=actor, claim=claim, side=Side.BUYER, reason="other", text="no", at=at))
    for dispute in found[1:]:
        disputing.withdraw(actor=actor, dispute=dispute, side=Side.BUYER, at=at)
    pages = [owner.get(reverse("claim-disputes") + query) for query in ("", "?from=2", "?from=4")]
    assert [faults(read(one)) for one in pages] == [[], [], []]
    ids = [[dispute.claim.public_id in one.content.decode() for dispute in found] for one in pages]
    assert ids == [[True, False, False, True], [False, True, True, False], [False] * 4]
    assert ["Older disputes" in one.content.decode() for one in pages] == [True, False, False]


def test_what_was_written_about_a_result_is_not_lost_with_the_refusal(
    owner: Client, acme: Organization, project: Project, actor: Actor
) -> None:
    at = timezone.now()
    claim = make_deal(acme, **BY_CUSTOMER).claim(project, "frame 1", at=at)
    answering.reject(actor=actor, claim=claim, reason="first", at=at)
    words = "Black from the third second on, <b>as the picture shows</b>"
    answer = owner.post(reverse("claim-reject", args=[claim.public_id]), {"reason": words})
    page = read(answer)
    assert (answer.status_code, faults(page), escape(words) in answer.content.decode()) == (409, [], True)
    assert "What you wrote" not in read(owner.post(reverse("claim-accept", args=[claim.public_id]))).text
