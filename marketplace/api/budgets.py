"""Budgets: what an organization, its projects and its tokens mean to use, whom that is told, and what follows."""

from dataclasses import replace
from typing import Any

from django.utils import timezone
from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, budgets, spend
from marketplace.api import budget_shapes, shapes
from marketplace.api.pages import checked, queried
from marketplace.api.views import actor_of, naming
from marketplace.budget_counters import COUNTERS
from marketplace.budgets import Standing
from marketplace.errors import BadOrder
from marketplace.models import BudgetAlert
from marketplace.models.budgets import MONEY
from marketplace.money import decimal_string

Answer = dict[str, Any]
SETTINGS = ("action", "grace_minutes", "used_shares", "forecast_shares")


class BudgetList(APIView):
    @extend_schema(
        operation_id="list_budgets",
        parameters=[shapes.OrganizationQuery],
        responses={200: budget_shapes.BudgetListAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List the budgets of an organization, its projects and its tokens, what is used, the forecast, and alerts."""
        actor, query = actor_of(request), queried(request, shapes.OrganizationQuery)
        with naming("organization"):
            organization = access.organization_for(actor, query.get("organization"), verb="budget.view")
        at = timezone.now()
        return Response({"data": [_budget(one, at=at) for one in budgets.listed(actor, organization, at=at)]})


class BudgetDetail(APIView):
    @extend_schema(
        operation_id="show_budget",
        parameters=[budget_shapes.Counted],
        responses={200: budget_shapes.BudgetAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, owner_id: str) -> Response:
        """Show the budgets of an organization, a project or a token by its id."""
        query, at = queried(request, budget_shapes.Counted), timezone.now()
        owner, organization = budgets.owner_for(actor_of(request), owner_id, verb="budget.view")
        return Response(_budget(budgets.of(owner, organization, counts=query["counts"], at=at), at=at))

    @extend_schema(
        operation_id="change_budget",
        request=budget_shapes.ChangeBudget,
        responses={200: budget_shapes.BudgetAnswer, shapes.REFUSED: shapes.Problem},
    )
    def put(self, request: Request, owner_id: str) -> Response:
        """Set the budgets of an organization, a project or a token, and what follows; what is not named stays."""
        queried(request)
        actor, asked = actor_of(request), checked(budget_shapes.ChangeBudget, request.data)
        owner, organization = budgets.owner_for(actor, owner_id, verb="budget.change")
        at, counts = timezone.now(), asked.get("counts", MONEY)
        if counts not in COUNTERS:
            raise BadOrder("counts", _("A budget counts one of: %(names)s.") % {"names": ", ".join(COUNTERS)})
        now = budgets.of(owner, organization, counts=counts, at=at)
        settings = replace(budgets.settings_of(now.budget), **{name: asked[name] for name in SETTINGS if name in asked})
        budgets.change(
            actor=actor, owner=owner, organization=organization, counts=counts,
            amount=None if asked["monthly"] is None else budgets.read(now, asked["monthly"]),
            hourly_micros=asked["hourly"], settings=settings,
        )  # fmt: skip
        return Response(_budget(budgets.of(owner, organization, counts=counts, at=at), at=at))


def _budget(found: Standing, *, at: Any) -> Answer:
    owner, budget = found.owner, found.budget
    now, written = spend.committed(owner, found.organization, at=at), found.counter.written
    settings = budgets.settings_of(budget)
    counted = {"spent": now.spent_micros, "set_aside": now.aside_micros,
               "shares_due": now.shares_micros, "per_hour": now.hourly_micros}  # fmt: skip
    hourly = owner.hourly_budget_micros
    return {
        "id": owner.public_id,
        "kind": found.kind,
        "name": owner.name,
        "currency": now.currency,
        "counts": found.counts,
        "monthly": None if budget is None else written(budget.amount),
        "hourly": None if hourly is None else decimal_string(hourly),
        "month_since": now.since,
        "used": written(found.measure.used),
        "forecast": written(found.measure.forecast),
        **{name: decimal_string(micros) for name, micros in counted.items()},
        **{name: getattr(settings, name) for name in SETTINGS},
        "passed_at": budget.passed_at if budget else None,
        "stops_at": budget.stops_at if budget else None,
        "alerts": [_alert(one, found) for one in found.alerts],
    }


def _alert(alert: BudgetAlert, found: Standing) -> Answer:
    written = found.counter.written
    return {
        "kind": alert.kind,
        "share": alert.share,
        "amount": written(alert.amount),
        "reached": written(alert.reached),
        "at": alert.at,
        "sent_at": alert.sent_at,
    }
