"""Whose invoices these are, and who they are for: names, addresses and tax ids on paper."""

from typing import Any

from django.db import transaction

from billing.accounts import Organization
from billing.errors import NoSeller
from billing.invoicing import tax_ids
from billing.models import BillingDetails, InvoiceSeries

Kind = InvoiceSeries.Kind
PREFIXES = {Kind.INVOICE: "INV-", Kind.CREDIT_NOTE: "CN-"}


def save_details(
    *,
    organization: Organization,
    legal_name: str,
    address: str,
    country: str,
    tax_id: str = "",
    email: str = "",
    language: str = BillingDetails.Language.ENGLISH,
) -> BillingDetails:
    """Keep who an organization is on paper, from its next invoice on. Raises BadTaxId, and changes nothing then."""
    details, _ = BillingDetails.objects.update_or_create(
        organization_id=organization.pk,
        defaults={
            "legal_name": legal_name,
            "address": address,
            "country": country,
            "tax_id": tax_ids.checked(country=country, typed=tax_id),
            "email": email,
            "language": language,
        },
    )
    return details


def details_of(organization: Organization) -> BillingDetails | None:
    """Return who an organization is on paper, if it has said so."""
    return BillingDetails.objects.filter(organization_id=organization.pk).first()


@transaction.atomic
def name_seller(*, organization: Organization) -> None:
    """Let invoices be those of this organization from now on; it must have billing details. Numbers go on.

    One seller, so one series of numbers for invoices and one for credit notes.
    """
    if details_of(organization) is None:
        raise NoSeller("the seller needs billing details first")
    for kind, prefix in PREFIXES.items():
        InvoiceSeries.objects.update_or_create(
            kind=kind, defaults={"seller_id": organization.pk}, create_defaults={
                "seller_id": organization.pk, "prefix": prefix,
            },
        )  # fmt: skip


def seller() -> BillingDetails:
    """Return who sells, on paper; raise NoSeller while nobody does."""
    found = BillingDetails.objects.filter(organization__invoice_series__kind=Kind.INVOICE)
    details = found.select_related("organization").first()
    if details is None:
        raise NoSeller("no seller was named yet")
    return details


def take_numbers(kind: Kind, count: int) -> list[tuple[InvoiceSeries, int, str]]:
    """Take the next numbers of a series, in the transaction that issues what they are for.

    The row stays locked until that transaction ends: if it is undone, so is
    this, and the same numbers are the next ones again. After accounts, never before.
    """
    series = InvoiceSeries.objects.select_for_update(no_key=True).get(kind=kind)
    first = series.next_number
    series.next_number += count
    series.save(update_fields=["next_number"])
    return [(series, number, f"{series.prefix}{number:06}") for number in range(first, first + count)]


def snapshot(details: BillingDetails | None, *, name: str, country: str) -> dict[str, Any]:
    """Return what an invoice keeps of a party; without details its name, as if it were of the seller's country."""
    if details is None:
        return {"name": name, "address": "", "country": country, "tax_id": ""}
    return {
        "name": details.legal_name,
        "address": details.address,
        "country": details.country,
        "tax_id": details.tax_id,
    }
