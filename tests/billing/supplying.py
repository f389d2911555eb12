"""Suppliers for tests: whose GPUs run, by which rate card, and two people who decide about it."""

from uuid import uuid4

from django.apps import apps

from billing.suppliers import cards
from billing.suppliers.cards import Terms
from tests.billing.makers import HOUR, NOON, make_organization, numbers

TERMS = Terms(share_bps=7_000, reserve_bps=1_000, reserve_days=30)


def make_person():
    users = apps.get_model("marketplace", "User").objects
    return users.create_user(f"person-{next(numbers)}@operator.example").pk


def make_supplier(**overrides):
    organization = make_organization(**overrides)
    type(organization).objects.filter(pk=organization.pk).update(is_supplier=True)
    organization.is_supplier = True
    return organization


def make_card(supplier, *, terms=TERMS, begins=NOON - HOUR, **changes):
    """Propose and approve; what differs from seven tenths with a tenth of that held back is named."""
    wanted = Terms(**{name: getattr(terms, name) for name in Terms.__slots__} | changes)
    by, decided_by = make_person(), make_person()
    card = cards.propose(supplier=supplier, terms=wanted, effective_from=begins, by=by, key=uuid4(), at=begins)
    return cards.approve(card=card, by=decided_by, at=begins)


def labels(supplier, *, offer="ofr_1", nodes=None):
    return {"project": "prj_1", "offer": offer, "supplier": supplier.public_id, "nodes": nodes or {"nod_1": 2}}
