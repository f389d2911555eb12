"""What is for sale, and where."""

from collections.abc import Sequence

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access, offers, volumes
from marketplace.api import answers, shapes, volume_shapes
from marketplace.api.pages import PageQuery, paged, paged_by_key, queried
from marketplace.api.views import actor_of
from marketplace.errors import NotFound
from provisioning.models import Site


class OfferList(APIView):
    """The shop window."""

    @extend_schema(
        operation_id="list_offers",
        parameters=[shapes.OfferQuery, PageQuery],
        responses={200: shapes.page_of(shapes.OfferAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List all offers with price and free GPUs, cheapest first, both as of `as_of`."""
        query = queried(request, shapes.OfferQuery, PageQuery)
        organization = access.organization_for(actor_of(request), None, verb="organization.view")
        rows = offers.listed(gpu_model=query.get("gpu_model", ""), country=query.get("country", ""))
        least = max(query.get("min_gpus", 0), int(query["available"]))
        listings = offers.listings(rows, currency=organization.currency, at=timezone.now())
        page, next_cursor = paged_by_key(
            (listing for listing in listings if listing.available_gpus >= least),
            query,
            key=lambda listing: (listing.price.micros_per_unit_hour, listing.offer.pk),
        )
        return Response({"data": [answers.listing(listing) for listing in page], "next_cursor": next_cursor})


class OfferDetail(APIView):
    """One offer."""

    @extend_schema(operation_id="show_offer", responses={200: shapes.OfferAnswer, shapes.REFUSED: shapes.Problem})
    def get(self, request: Request, offer_id: str) -> Response:
        """Show an offer by its id or slug."""
        queried(request)
        organization = access.organization_for(actor_of(request), None, verb="organization.view")
        offer = offers.offer_for(offer_id)
        found = offers.listings([offer], currency=organization.currency, at=timezone.now())
        if not found:
            raise NotFound
        return Response(answers.listing(found[0]))


class SiteList(APIView):
    """Where the nodes stand."""

    @extend_schema(
        operation_id="list_sites",
        parameters=[PageQuery],
        responses={200: shapes.page_of(volume_shapes.SiteWithStorageAnswer), shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request) -> Response:
        """List the sites, with what storage costs there."""
        query = queried(request, PageQuery)
        organization = access.organization_for(actor_of(request), None, verb="organization.view")

        def shown(rows: Sequence[Site]) -> list[answers.Answer]:
            known = volumes.prices_of(rows, currency=organization.currency, at=timezone.now())
            return [answers.site_with_storage(row, known.get(row.pk)) for row in rows]

        return paged(offers.sites(), query, shown)
