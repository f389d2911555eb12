"""Putting an instance under a guarantee that its organization agreed to, and taking it out again."""

from datetime import UTC, datetime, timedelta

from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from marketplace import audit
from marketplace.access import Actor
from marketplace.contracts import offering
from marketplace.errors import BadOrder, Conflict, IllegalState, NotFound
from marketplace.models import ContractVersion, Guarantee, Side
from provisioning.models import Instance, Phase

HOUR = timedelta(hours=1)


@transaction.atomic
def begin(*, actor: Actor, instance: Instance, version_id: str, at: datetime) -> Guarantee:
    """Let a version's floor hold for an instance from the next whole hour (UTC) on; beginning again changes nothing.

    Raises NotFound for a version that its organization did not agree to, BadOrder for one that guarantees nothing or
    is sold by somebody else than the owner of its GPUs, IllegalState for one that its seller does not offer (not yet,
    or no more), Conflict while another holds.
    """
    version = _version(instance, version_id)
    if instance.phase == Phase.TERMINATED:
        raise Conflict(_("It has ended for good."))
    found = of(instance)
    if found is not None:
        if found.version_id != version.pk:
            raise Conflict(_("It is under another guarantee already; end that first."))
        return found
    if version.state != ContractVersion.State.OFFERED:
        # What its customer proposes is agreed to by them with that, and by its seller only when it is offered.
        raise IllegalState(_("This version is not offered; it is %(state)s.") % {"state": version.get_state_display()})
    accepted = offering.acceptance_of(version, instance.project.organization)
    assert accepted is not None, "its version is one that its organization agreed to"
    offering.check_not_left(accepted)
    since = next_hour(at)
    try:
        with transaction.atomic():
            made = Guarantee.objects.create(instance=instance, version=version, since=since, judged_until=since)
    except IntegrityError as error:
        raise Conflict(_("It is under another guarantee already; end that first.")) from error
    _record(actor, made, "guarantee.begin")
    return made


@transaction.atomic
def end(*, actor: Actor, instance: Instance, at: datetime) -> Guarantee:
    """End an instance's guarantee with the whole hour that runs; NotFound where it has none."""
    found = of(instance)
    if found is None:
        raise NotFound("guarantee")
    found.ended_at = max(found.since, next_hour(at))
    found.save(update_fields=["ended_at"])
    _record(actor, found, "guarantee.end")
    return found


def of(instance: Instance) -> Guarantee | None:
    """Return the guarantee under which an instance is."""
    rows = Guarantee.objects.filter(instance=instance, ended_at=None).select_related("version__contract__seller")
    return rows.first()


def offered(instance: Instance) -> QuerySet[ContractVersion]:
    """Return the guarantees on offer that an instance's organization agreed to and whose seller owns its GPUs."""
    mine = ContractVersion.objects.filter(
        state=ContractVersion.State.OFFERED,
        acceptances__organization=instance.project.organization_id, acceptances__side=Side.BUYER, acceptances__end=None,
        contract__kind="guarantee", contract__seller=instance.offer.supplier_id,
    )  # fmt: skip
    return mine.select_related("contract__seller").order_by("-pk")


def next_hour(at: datetime) -> datetime:
    """Return the first whole hour (UTC) that is not before a moment."""
    begun = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return begun if begun == at else begun + HOUR


def _version(instance: Instance, version_id: str) -> ContractVersion:
    agreed = ContractVersion.objects.filter(
        public_id=version_id, acceptances__organization=instance.project.organization_id,
        acceptances__side=Side.BUYER,
    )  # fmt: skip
    version = agreed.select_related("contract__seller").first()
    if version is None:
        raise NotFound("contract")
    if version.contract.kind != "guarantee":
        raise BadOrder("contract", _("This contract guarantees no performance."))
    if version.contract.seller_id != instance.offer.supplier_id:
        raise BadOrder("contract", _("Whoever sells this contract does not own the GPUs of this instance."))
    return version


def _record(actor: Actor, made: Guarantee, verb: str) -> None:
    audit.record(
        actor=actor, organization=made.instance.project.organization, verb=verb, subject_id=made.instance.public_id,
        after={"guarantee": made.public_id, "contract": made.version.public_id},
    )  # fmt: skip
