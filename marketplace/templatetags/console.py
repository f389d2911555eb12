"""How the console writes the states of nodes and of proposals, and what was changed."""

from django import template
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from billing.models import Commitment, CreditProposal, InvoiceDispute, Proposal, RateCard, Refund, SupplierAdjustment
from marketplace.console.troubles import KINDS, RED_KINDS
from marketplace.portal import words
from marketplace.templatetags.portal import badge
from provisioning.models import Gpu, Heartbeat, Node, Remediation

register = template.Library()

REACHABILITY = {
    Node.Reachability.UNKNOWN: ("quiet", "clock"),
    Node.Reachability.ONLINE: ("good", "check"),
    Node.Reachability.SUSPECT: ("warn", "alert"),
    Node.Reachability.UNREACHABLE: ("bad", "cross"),
    Node.Reachability.LOST: ("bad", "cross"),
}
STATES = {
    Node.State.NEW: ("quiet", "clock"),
    Node.State.AVAILABLE: ("good", "check"),
    Node.State.CORDONED: ("warn", "pause"),
    Node.State.DRAINING: ("warn", "loader"),
    Node.State.RETIRED: ("quiet", "minus"),
}


@register.simple_tag
def reachability(node: Node) -> SafeString:
    """Write whether a node answers."""
    return badge(node.get_reachability_display(), *REACHABILITY[Node.Reachability(node.reachability)])


@register.simple_tag
def node_state(node: Node) -> SafeString:
    """Write whether placement may use a node."""
    return badge(node.get_state_display(), *STATES[Node.State(node.state)])


REPAIRS = {
    Remediation.State.WAITING: ("bad", "pause"),
    Remediation.State.DRAINING: ("warn", "clock"),
    Remediation.State.ACTING: ("warn", "loader"),
    Remediation.State.VERIFYING: ("warn", "loader"),
    Remediation.State.STUCK: ("bad", "alert"),
    Remediation.State.CONDEMNED: ("bad", "cross"),
    Remediation.State.RETURNED: ("good", "check"),
    Remediation.State.REPLACED: ("quiet", "check"),
    Remediation.State.CANCELLED: ("quiet", "minus"),
}


@register.simple_tag
def repair_state(repair: Remediation) -> SafeString:
    """Write how far a repair is."""
    return badge(repair.get_state_display(), *REPAIRS[Remediation.State(repair.state)])


# Of everything that somebody proposes or asks, and somebody else decides.
DECISIONS = {
    "proposed": ("moving", "clock"),
    "open": ("moving", "clock"),
    "offered": ("moving", "clock"),
    "approved": ("good", "check"),
    "agreed": ("good", "check"),
    "issued": ("good", "check"),
    "upheld": ("good", "check"),
    "declined": ("quiet", "minus"),
    "rejected": ("quiet", "minus"),
    "withdrawn": ("quiet", "minus"),
    # A refund goes on to the card processor.
    "sending": ("moving", "loader"),
    "unknown": ("warn", "loader"),
    "processing": ("moving", "loader"),
    "succeeded": ("good", "check"),
    "failed": ("bad", "alert"),
}


@register.simple_tag
def decision(
    row: Commitment | CreditProposal | InvoiceDispute | Proposal | RateCard | Refund | SupplierAdjustment,
) -> SafeString:
    """Write how far a proposal or a dispute is."""
    return badge(row.get_state_display(), *DECISIONS[row.state])


@register.simple_tag
def gpu_state(gpu: Gpu) -> SafeString:
    """Write what keeps a GPU from being placed, if anything does."""
    if gpu.state == Gpu.State.CLEAN:
        return SafeString()
    return badge(gpu.get_state_display(), "bad" if gpu.state == Gpu.State.QUARANTINED else "warn", "alert")


@register.simple_tag
def trouble(kind: str) -> SafeString:
    """Write what kind of trouble an instance is in."""
    tone = "bad" if kind in RED_KINDS or kind == "failed" else "warn"
    return badge(str(KINDS[kind]), tone, "alert")


@register.simple_tag
def source(heartbeat: Heartbeat) -> SafeString:
    """Write where readings come from; those of a simulated GPU never pass for real ones."""
    is_simulated = heartbeat.gpu_source == "simulated"
    return badge(_("simulated") if is_simulated else heartbeat.gpu_source.upper(), "warn" if is_simulated else "quiet")


@register.filter
def audited(verb: str) -> str:
    """Write what somebody did."""
    return str(words.AUDITED.get(verb, verb))
