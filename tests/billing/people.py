"""Two people of the operator: who proposes and who decides."""

from uuid import uuid4

from django.apps import apps

from billing import credit_lines
from tests.billing.makers import NOON, USD


def two_people():
    users = apps.get_model("marketplace", "User").objects
    return [users.get_or_create(email=f"{name}@operator.example")[0].pk for name in ("carol", "dan")]


def give_credit_line(organization, limit_micros=100 * USD, *, net_days=30, at=NOON):
    """Let an organization pay afterwards."""
    carol, dan = two_people()
    line = credit_lines.propose(
        organization=organization, limit_micros=limit_micros, net_days=net_days, reason="Known for years", by=carol,
        key=uuid4(), at=at,
    )  # fmt: skip
    credit_lines.approve(line=line, by=dan, at=at)
    organization.refresh_from_db()
    return line
