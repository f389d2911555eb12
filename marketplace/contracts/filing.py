"""Claims that a seller files for results outside of jobs, judged by the customer or by the third party of the terms."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from billing.errors import InsufficientFunds, PaymentsPastDue
from billing.outcomes import escrows
from marketplace import audit
from marketplace.access import Actor
from marketplace.contracts import claims, offering
from marketplace.contracts import evidence as named
from marketplace.contracts import terms as written
from marketplace.errors import BadOrder, Conflict, IllegalState
from marketplace.models import AgreementEnd, Claim, ContractVersion, Job, Organization, Project

SUBJECT_LENGTH_MAX = 200
EVIDENCE_BYTES_MAX = 16 * 1024
# The whole numbers below it, and no others, are the same for everybody who reads them (RFC 8785).
EXACT_MAX = 2**53


@transaction.atomic
def file(
    *,
    actor: Actor,
    version: ContractVersion,
    project: Project,
    subject: str,
    units: int,
    evidence: Mapping[str, Any],
    at: datetime,
) -> Claim:
    """Claim a result under a version that the project's organization accepted; what it costs is set aside with that.

    The same subject is claimed once: repeating it with the same evidence
    returns the claim, with other evidence is a Conflict. Raises BadOrder, or
    Conflict where its customer cannot cover it: how much they have or owe is
    not for their seller to know.
    """
    terms, customer = written.of(version.terms), project.organization
    _check_sold(version, customer)
    subject = _named(subject)
    if not 1 <= units <= terms["unit"]["most"]:
        raise BadOrder("units", _("Claim 1 to %(most)s units at once.") % {"most": f"{terms['unit']['most']:,}"})
    if lacking := named.not_filed(evidence, terms):
        raise BadOrder("evidence", _("Its terms name evidence that is not here: %(lacking)s.") % {"lacking": lacking})
    proof = _proof(evidence)
    if len(proof.encode()) > EVIDENCE_BYTES_MAX:
        raise BadOrder("evidence", _("Evidence is digests and figures: at most %(most)s bytes.") % {
            "most": EVIDENCE_BYTES_MAX
        })  # fmt: skip
    amount = terms.amount_micros(units=units)
    wanted = Claim(
        version=version, contract=version.contract, organization=customer, project=project, subject_key=subject,
        units=units, amount_micros=amount, most_micros=amount, state_since=at, evidence=dict(evidence),
        evidence_sha256=written.digest(proof), claimed_at=at, due_at=at,
    )  # fmt: skip
    wanted.escrow_id = wanted.public_id
    made = claims.write(wanted)
    if made.public_id != wanted.public_id:
        if (made.evidence_sha256, made.units) != (wanted.evidence_sha256, units):
            raise Conflict(_("This subject is claimed already, with other evidence; it is paid once."))
        return made
    try:
        escrows.escrow(
            organization=customer, resource_id=made.escrow_id, amount_micros=amount, version=version.public_id,
            reason=f"{version.contract.title}: {subject}"[:200], at=at,
        )  # fmt: skip
    except (InsufficientFunds, PaymentsPastDue):
        raise Conflict(
            _("The customer cannot cover this claim now; nothing is claimed. Ask them, then file it again.")
        ) from None
    audit.record(
        actor=actor, organization=version.contract.seller, verb="claim.file", subject_id=made.public_id,
        after={"subject": subject, "units": units, "amount_micros": amount},
    )  # fmt: skip
    return made


def _check_sold(version: ContractVersion, customer: Organization) -> None:
    """Raise BadOrder or IllegalState where nothing is filed under a version for this customer."""
    terms = written.of(version.terms)
    accepted = offering.acceptance_of(version, customer)
    if accepted is None:
        raise BadOrder("version", _("This customer has not accepted this version."))
    if AgreementEnd.objects.filter(acceptance=accepted).exists():
        raise BadOrder("version", _("This customer has ended this agreement; nothing new is claimed under it."))
    if version.state != ContractVersion.State.OFFERED:
        raise IllegalState(_("Nothing new is claimed under a version that is withdrawn."))
    if terms.kind not in written.CLAIMED_KINDS or terms.verifier not in ("customer", "third_party"):
        raise BadOrder("version", _("Its results come from jobs, and are claimed by them alone."))
    if terms.is_counted:
        raise BadOrder("version", _("Its units are counted from jobs, and not claimed."))


def _named(subject: str) -> str:
    """Return a subject as it is kept, or raise BadOrder; what a job claims is not named by anybody else."""
    subject = subject.strip()
    if not subject or len(subject) > SUBJECT_LENGTH_MAX:
        raise BadOrder("subject", _("Write 1 to %(most)s characters.") % {"most": SUBJECT_LENGTH_MAX})
    before, slash, _rest = subject.partition("/")
    if slash and Job.objects.filter(public_id=before).exists():
        raise BadOrder("subject", _("A task's result is claimed by its job alone."))
    return subject


def _proof(evidence: Mapping[str, Any]) -> str:
    """Return the canonical text of evidence, or raise BadOrder where it does not say exactly the same to everybody."""
    try:
        text = written.canonical(dict(evidence))
        json.loads(text, parse_float=_exact)
    except (ValueError, RecursionError) as error:
        raise BadOrder(
            "evidence", _("Evidence is exact: numbers below 2^53 and whole characters; write larger ones as texts.")
        ) from error
    return text


def _exact(number: str) -> float:
    if abs(float(number)) >= EXACT_MAX:
        raise ValueError(number)
    return float(number)
