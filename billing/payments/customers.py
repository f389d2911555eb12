"""Who an organization is to the processor."""

from billing.accounts import Organization
from billing.models import ProcessorCustomer
from billing.payments import gateway


def customer_id(organization: Organization) -> str:
    """Return the processor's id of an organization, known to it from the first call on. Network, the first time.

    Where an answer was lost the same key makes the same customer again; after a day it may make a second one, which
    has no cards and is never used.
    """
    row, _ = ProcessorCustomer.objects.select_related("organization").get_or_create(organization_id=organization.pk)
    if not row.processor_id:
        made = gateway.customer(key=f"customer:{row.public_id}", name=row.organization.name)
        ProcessorCustomer.objects.filter(pk=row.pk, processor_id="").update(processor_id=made)
        row.refresh_from_db()
    return row.processor_id


def known_id(organization_id: int) -> str:
    """Return the processor's id of an organization, or nothing if it has none yet."""
    found = ProcessorCustomer.objects.filter(organization_id=organization_id).first()
    return found.processor_id if found else ""
