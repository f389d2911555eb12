"""Where nothing may run for what is unpaid: few questions, however many owe, and nobody who paid is among them."""

import pytest

from billing import standing
from billing.collecting import Action
from billing.models import Account
from tests.billing.invoicing import close, make_seller, use
from tests.billing.makers import HOUR, NOON, USD, grant, make_organization, make_price
from tests.billing.people import give_credit_line
from tests.billing.test_bank import approved, recorded
from tests.billing.test_dunning import after, days, run

pytestmark = pytest.mark.django_db


def owe(many):
    """Let so many organizations owe ten dollars each for March."""
    make_seller("US")
    price = make_price(micros_per_unit_hour=10 * USD)
    found = []
    for number in range(many):
        organization = make_organization()
        give_credit_line(organization, 1000 * USD, net_days=7)
        use(organization, begin=NOON, quantity=1, price=price, resource_id=f"ins_{number}")
        found.append(organization)
    close()
    return found


def stopped(at, limit=200):
    return standing.past_due(Action.STOP_ON_DEMAND, at=at, limit=limit)


def unpaid_until(day):
    for one in days(-8, day):
        run(after(one))


def test_who_pays_nothing_costs_two_questions_however_many_they_are(django_assert_num_queries):
    found = owe(3)
    unpaid_until(23)
    with django_assert_num_queries(2):
        assert stopped(after(23)) == [one.pk for one in found]


def test_who_was_written_off_is_stopped_and_never_looked_at_again(django_assert_num_queries):
    (acme,) = owe(1)
    unpaid_until(70)
    grant(acme, USD, at=after(70))
    with django_assert_num_queries(2):
        assert stopped(after(70)) == [acme.pk]


def test_only_those_to_whom_money_came_are_looked_at(django_assert_num_queries):
    acme, other, third = owe(3)
    unpaid_until(23)
    approved(recorded(acme, 4 * USD), at=after(23))
    grant(other, 10 * USD, at=after(23))
    assert stopped(after(23)) == [acme.pk, third.pk]
    run(after(23, hours=2))
    with django_assert_num_queries(2):
        assert stopped(after(23, hours=2)) == [acme.pk, third.pk]


def test_who_may_have_paid_and_was_not_looked_at_yet_is_left_alone():
    found = owe(3)
    unpaid_until(23)
    for one in found:
        grant(one, 10 * USD, at=after(23) + HOUR)
    for left in (2, 1, 0):
        assert stopped(after(23) + HOUR, limit=1) == []
        assert Account.objects.exclude(sanction="").count() == left
