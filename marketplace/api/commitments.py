"""What an organization promised to use."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing.models import Commitment
from marketplace import access
from marketplace.api import price_shapes, shapes
from marketplace.api.pages import PageQuery, paged, queried
from marketplace.api.views import actor_of, naming
from marketplace.money import decimal_string


class CommitmentList(APIView):
    @extend_schema(
        operation_id="list_commitments",
        parameters=[shapes.OrganizationQuery, PageQuery],
        responses={200: shapes.page_of(price_shapes.CommitmentAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List the commitments that were agreed, newest first, and how much of each is used."""
        query = queried(request, shapes.OrganizationQuery, PageQuery)
        with naming("organization"):
            organization = access.organization_for(actor_of(request), query.get("organization"), verb="commitment.view")
        return paged(access.commitments(organization), query, lambda found: [_answer(row) for row in found])


def _answer(row: Commitment) -> dict[str, Any]:
    return {
        "id": row.public_id,
        "kind": row.kind,
        "currency": row.currency,
        "committed": decimal_string(row.committed_micros),
        "committed_unit_hours": row.committed_unit_hours or None,
        "drawn": decimal_string(row.drawn_micros),
        "drawn_unit_milliseconds": row.drawn_unit_milliseconds,
        "left": decimal_string(row.left_micros),
        "left_over": decimal_string(row.breakage_micros),
        "discount_bps": row.discount_bps,
        "starts_at": row.starts_at,
        "ends_at": row.ends_at,
        "prices": [
            {
                "name": price.name,
                "sku": price.sku,
                "unit": f"{price.unit}_hour",
                "amount": decimal_string(price.micros_per_unit_hour),
                "currency": row.currency,
                "list_amount": decimal_string(price.list_micros_per_unit_hour),
            }
            for price in row.prices.all()
        ],
    }
