"""Billing details: who an organization is on its invoices. Checked here, kept by the till, written into the audit."""

from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.utils.translation import gettext as _

from billing.errors import BadTaxId
from billing.invoicing import sellers
from billing.invoicing.taxes import COUNTRIES, TABLE
from billing.models import BillingDetails
from marketplace import audit
from marketplace.access import Actor
from marketplace.errors import BadOrder
from marketplace.models import Organization

NAME_LENGTH_MAX, ADDRESS_LENGTH_MAX, ADDRESS_LINES_MAX, TAX_ID_LENGTH_MAX, EMAIL_LENGTH_MAX = 200, 400, 6, 32, 254
FIELDS = ("legal_name", "address", "country", "tax_id", "email", "language")
EXAMPLES = {
    "CH": "CHE-107.787.577 MWST",
    "DE": "DE136695976",
    "GB": "GB980780684",
    "JP": "T5835678256246",
    "NO": "995525828MVA",
    "US": "91-1144442",
}


@transaction.atomic
def change(*, actor: Actor, organization: Organization, **typed: str) -> BillingDetails:
    """Keep an organization's billing details, for the invoices from now on. Raises BadOrder naming what is wrong."""
    found = {name: typed.get(name, "").strip() for name in FIELDS}
    _check(found)
    before = as_written(sellers.details_of(organization))
    try:
        details = sellers.save_details(organization=organization, **found)
    except BadTaxId as error:
        raise BadOrder("tax_id", why(error)) from error
    after = as_written(details)
    if before != after:
        audit.record(
            actor=actor,
            organization=organization,
            verb="billing_details.change",
            subject_id=organization.public_id,
            before=before,
            after=after,
        )
    return details


def as_written(details: BillingDetails | None) -> dict[str, Any] | None:
    """Return billing details as the audit and forms have them."""
    return {name: getattr(details, name) for name in FIELDS} if details else None


def why(error: BadTaxId) -> str:
    """Return what is wrong with a tax id, in the reader's language."""
    example = EXAMPLES.get(error.country, "")
    said = _("This is not a tax id of %(country)s: its form or check digit is wrong.") % {"country": error.country}
    return f"{said} {_('An example: %(example)s.') % {'example': example}}" if example else said


def is_taxed(country: str) -> bool:
    """Return whether our table of taxes has this country."""
    return country in TABLE["rates"]


def _check(found: dict[str, str]) -> None:
    found["address"] = "\n".join(line.strip() for line in found["address"].splitlines() if line.strip())
    found["country"] = found["country"].upper()
    found["language"] = found["language"] or BillingDetails.Language.ENGLISH
    name, address = found["legal_name"], found["address"]
    if not name or len(name) > NAME_LENGTH_MAX or not name.isprintable():
        raise BadOrder("legal_name", _("Use 1 to %(most)s printable characters.") % {"most": NAME_LENGTH_MAX})
    lines = address.splitlines()
    if not lines or len(lines) > ADDRESS_LINES_MAX or len(address) > ADDRESS_LENGTH_MAX:
        raise BadOrder(
            "address",
            _("Write 1 to %(lines)s lines of together %(most)s characters at most.")
            % {"lines": ADDRESS_LINES_MAX, "most": ADDRESS_LENGTH_MAX},
        )
    if not all(line.isprintable() for line in lines):
        raise BadOrder("address", _("Use printable characters."))
    if found["country"] not in COUNTRIES:
        raise BadOrder("country", _("Write the two letters of a country (ISO 3166-1), such as NO."))
    if len(found["tax_id"]) > TAX_ID_LENGTH_MAX:
        raise BadOrder("tax_id", _("A tax id has at most %(most)s characters.") % {"most": TAX_ID_LENGTH_MAX})
    if found["language"] not in BillingDetails.Language.values:
        raise BadOrder("language", _("Invoices come in English (en) or Japanese (ja)."))
    _check_email(found["email"])


def _check_email(email: str) -> None:
    if not email:
        return
    try:
        validate_email(email)
    except ValidationError as error:
        raise BadOrder("email", _("This is not an e-mail address.")) from error
    if len(email) > EMAIL_LENGTH_MAX:
        raise BadOrder("email", _("An e-mail address has at most %(most)s characters.") % {"most": EMAIL_LENGTH_MAX})
