"""The table of dunning: changed by two people, within what harms nobody early."""

from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction

from billing import dunning, dunning_table
from billing.errors import AlreadyDecided, AlreadyProposed, BadDunningTable, KeyReused, SecondPersonNeeded
from billing.models import DunningStep, DunningTable
from tests.billing.makers import NOON
from tests.billing.people import two_people

pytestmark = pytest.mark.django_db
MILD = ((-7, "charge"), (1, "mail"), (10, "restrict"), (20, "stop_spot"), (30, "stop_on_demand"), (90, "write_off"))


def propose(steps=MILD, *, key=None, reason="Kinder"):
    return dunning_table.propose(steps=steps, reason=reason, by=two_people()[0], key=key or uuid4(), at=NOON)


def now():
    return [(step.day_offset, step.action) for step in dunning.steps()]


def test_the_table_that_is_there_is_within_the_rails():
    dunning_table.check(now())


def test_a_table_holds_once_a_second_person_agrees_and_steps_that_were_taken_stay_rows():
    before, rows = now(), DunningStep.objects.count()
    made = propose()
    assert now() == before
    with pytest.raises(SecondPersonNeeded):
        dunning_table.approve(table=made, by=made.proposed_by_id, at=NOON)
    dunning_table.approve(table=made, by=two_people()[1], at=NOON)
    assert now() == list(MILD)
    assert DunningStep.objects.count() >= rows
    with pytest.raises(AlreadyDecided):
        dunning_table.decline(table=made, by=two_people()[1], at=NOON)
    back = propose(before, reason="As before")
    dunning_table.approve(table=back, by=two_people()[1], at=NOON)
    assert now() == before


@pytest.mark.parametrize(
    ("problem", "steps"),
    [
        ("rows", ()),
        ("rows", ((1, "mail"), (1, "mail"))),
        ("days", ((-31, "mail"),)),
        ("days", ((366, "mail"),)),
        ("early", ((-3, "mail"), (0, "restrict"))),
        ("twice", ((1, "mail"), (7, "restrict"), (9, "restrict"))),
        ("order", ((1, "mail"), (9, "restrict"), (7, "stop_spot"))),
        ("order", ((1, "mail"), (9, "restrict"), (9, "stop_spot"))),
        ("silent", ((7, "restrict"),)),
        ("silent", ((7, "mail"), (7, "restrict"))),
    ],
)
def test_a_table_that_harms_too_early_is_refused_and_changes_nothing(problem, steps):
    before = now()
    with pytest.raises(BadDunningTable) as refused:
        propose(steps)
    assert (refused.value.problem, now()) == (problem, before)


def test_one_proposal_waits_at_a_time_and_counts_once():
    key = uuid4()
    made = propose(key=key)
    assert propose(key=key) == made
    with pytest.raises(KeyReused):
        propose(MILD[:2], key=key)
    with pytest.raises(AlreadyProposed):
        propose(MILD[:2])
    with pytest.raises(IntegrityError, match="dunning_table_one_waits_at_a_time"), transaction.atomic():
        DunningTable.objects.create(
            steps=[], reason="x", proposed_by_id=made.proposed_by_id, proposed_at=NOON, key=uuid4()
        )
    dunning_table.decline(table=made, by=made.proposed_by_id, at=NOON)
    assert dunning_table.listed().count() == 1
