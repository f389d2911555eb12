"""Balance and usage."""

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing import accounts, promotions, runway
from marketplace import access, owing
from marketplace.api import answers, shapes
from marketplace.api.pages import PageQuery, paged, queried
from marketplace.api.views import actor_of, naming


class Balance(APIView):
    """What an organization has, and how long it lasts."""

    @extend_schema(
        operation_id="show_balance",
        parameters=[shapes.OrganizationQuery],
        responses={200: shapes.BalanceAnswer, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """Show the balance, what is spent per hour now, and when it will be used up."""
        query = queried(request, shapes.OrganizationQuery)
        with naming("organization"):
            organization = access.organization_for(actor_of(request), query.get("organization"), verb="balance.view")
        at, wallet = timezone.now(), accounts.wallet(organization=organization)
        credit, row = promotions.left(organization=organization), access.runway_of(organization)
        level = runway.level_of(row, at=at)
        unpaid = owing.unpaid(organization) if wallet.owed_micros else []
        taken = owing.taken_back(organization) if wallet.owed_micros else []
        coming = owing.coming(organization, unpaid, taken, row=row, at=at)
        return Response(
            answers.balance(
                organization, wallet, row, credit=credit, unpaid=unpaid, taken=taken, coming=coming, level=level, at=at
            )
        )


class UsageList(APIView):
    """What was measured, span by span."""

    @extend_schema(
        operation_id="list_usage",
        parameters=[shapes.UsageQuery, shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(shapes.UsageAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List usage, newest first: each span's time, GPU-milliseconds, price and amount."""
        actor, at = actor_of(request), timezone.now()
        query = queried(request, shapes.UsageQuery, shapes.OrganizationQuery, PageQuery)
        with naming("organization"):
            organization = access.organization_for(actor, query.get("organization"), verb="usage.view")
        rows = access.usage_spans(actor, organization)
        if "instance" in query:
            rows = rows.filter(resource_id=query["instance"])
        if "since" in query:
            rows = rows.exclude(ended_at__lt=query["since"])
        if "until" in query:
            rows = rows.filter(started_at__lt=query["until"])
        return paged(rows, query, lambda found: [answers.span(row, at=at) for row in found])
