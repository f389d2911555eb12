"""A node is cut off and heals, with leases of seconds; `tests.scenarios.cut` plays the same at its real size."""

from pathlib import Path

import pytest
from django.utils import timezone

from billing import books
from marketplace.access import Actor
from marketplace.models import Offer, Organization, Project
from provisioning.models import Fabric, GpuHold, Site
from tests.conftest import make_offer
from tests.packages import needs
from tests.scenarios.play import Figures, Times, play, poll_s

pytestmark = [needs("ip"), pytest.mark.django_db(transaction=True)]

TIMES = Times(
    cut=11, strict=3, sticky=60, grace=2.5, drift=0.5, suspect=1.5, unreachable=2.5, sweep=0.3, tick=0.05, settle=20
)


@pytest.fixture
def offer(operator: Organization, site: Site) -> Offer:
    return make_offer(operator, site, slug="cut", gpu_model="H200", price_micros=2_490_000)


def check(seen: Figures) -> None:
    """What must hold at any size."""
    times = seen.times
    # The strict one ended itself, in its time, before its replacement began; in no log do two runs overlap.
    assert seen.stamps_by_two == 0
    assert seen.strict_stopped < seen.strict_replaced
    assert seen.last_heard < seen.strict_stopped < seen.last_heard + times.strict + times.grace
    assert seen.strict_replaced > seen.last_heard + times.strict + times.grace + times.drift
    assert seen.replaced_on == "right"
    # The sticky one ran on through all of it.
    assert seen.sticky_run == 1
    assert seen.sticky_pause_longest < 10 * times.tick + 1
    # Bills: until the last proof of life, to the millisecond, and from the next one on.
    first, second = seen.strict_spans
    assert first.ended == pytest.approx(seen.last_heard, abs=0.0015)
    assert second.started >= seen.strict_replaced - 1.5
    first, second = seen.sticky_spans
    assert first.ended == pytest.approx(seen.last_heard, abs=0.0015)
    assert -poll_s() - 1 < seen.last_heard < 0.5
    assert second.started >= seen.healed - 0.5
    for span in seen.strict_spans + seen.sticky_spans:
        assert span.charged_micros == span.due_micros


def test_a_cut_ends_the_strict_instance_before_its_replacement_starts_and_leaves_the_sticky_one(
    actor: Actor, project: Project, offer: Offer, tmp_path: Path
) -> None:
    fabric = Fabric.objects.create(site=offer.site, name="fabric-1", kind="ethernet")
    check(play(TIMES, folder=tmp_path, actor=actor, project=project, offer=offer, fabric=fabric))
    assert not GpuHold.objects.filter(released_at=None).exists()
    assert books.check(at=timezone.now()) == []
