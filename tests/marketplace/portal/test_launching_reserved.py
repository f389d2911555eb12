"""Launching inside a reservation from the form."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import time_machine
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace.access import Actor
from marketplace.models import Project, Reservation
from provisioning.calendar import hour_of
from provisioning.models import Instance
from tests.blocks import Buyer, sell_blocks
from tests.conftest import Fleet
from tests.marketplace.portal.reading import faults, read
from tests.marketplace.portal.test_launching import sent


@pytest.fixture
def reserved(owner: Client, actor: Actor, project: Project, fleet: Fleet) -> Iterator[Reservation]:
    """Four GPUs that are Acme's for a day, seen half an hour after they began."""
    sell_blocks(fleet.h200)
    buyer = Buyer(actor, project, fleet.h200, hour_of(timezone.now()) + timedelta(hours=1))
    reservation = buyer.buy(4, 2, 26)
    buyer.go_to(2.5)
    with time_machine.travel(buyer.at(2.5), tick=True):
        for node in fleet.nodes.values():
            node.sync()
        yield Reservation.objects.get(pk=reservation.pk)


def test_the_form_says_that_a_reservation_pays_while_it_has_room(owner: Client, reserved: Reservation) -> None:
    page = read(owner.get(reverse("launch"), {"offer": "h200-narvik", "gpus": "4"}))
    assert faults(page) == []
    for words in ("It runs inside your reservation", "4 GPUs to spare", "Launch inside the reservation", "$0.00"):
        assert words in page.text, words
    beyond = read(owner.get(reverse("launch"), {"offer": "h200-narvik", "gpus": "5"}))
    assert "It runs inside your reservation" not in beyond.text
    assert "$12.45" in beyond.text
    strict = read(owner.get(reverse("launch"), {"offer": "h200-narvik", "gpus": "5", "attach": "strict"}))
    assert "Ask for fewer GPUs, or let it run outside." in strict.text
    other = read(owner.get(reverse("launch"), {"offer": "l40s-narvik"}))
    assert "to spare" not in other.text


@pytest.mark.parametrize(("chosen", "is_inside"), [("", True), ("strict", True), ("forbid", False), ("{id}", True)])
def test_what_is_chosen_is_where_it_runs(
    owner: Client, fleet: Fleet, reserved: Reservation, chosen: str, is_inside: bool
) -> None:
    answer = sent(owner, fleet, attach=chosen.format(id=reserved.public_id))
    assert answer.status_code == 302
    assert Instance.objects.get().reservation == (reserved if is_inside else None)


def test_the_command_line_beside_the_form_says_the_same(owner: Client, reserved: Reservation) -> None:
    asked = {"offer": "h200-narvik", "attach": reserved.public_id}
    assert f"--reservation {reserved.public_id}" in owner.get(reverse("launch"), asked).content.decode()
