"""Names that rows keep as codes, in the reader's language."""

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

COUNTRIES: dict[str, Promise] = {
    "AU": _("Australia"),
    "CA": _("Canada"),
    "CH": _("Switzerland"),
    "DE": _("Germany"),
    "DK": _("Denmark"),
    "ES": _("Spain"),
    "FI": _("Finland"),
    "FR": _("France"),
    "GB": _("United Kingdom"),
    "IE": _("Ireland"),
    "IN": _("India"),
    "IS": _("Iceland"),
    "IT": _("Italy"),
    "JP": _("Japan"),
    "KR": _("South Korea"),
    "NL": _("Netherlands"),
    "NO": _("Norway"),
    "PL": _("Poland"),
    "PT": _("Portugal"),
    "SE": _("Sweden"),
    "SG": _("Singapore"),
    "TW": _("Taiwan"),
    "US": _("United States"),
}
POWER_SOURCES: dict[str, Promise] = {
    "geothermal": pgettext_lazy("power source", "geothermal power"),
    "grid": pgettext_lazy("power source", "grid mix"),
    "hydro": pgettext_lazy("power source", "hydropower"),
    "nuclear": pgettext_lazy("power source", "nuclear power"),
    "solar": pgettext_lazy("power source", "solar power"),
    "wind": pgettext_lazy("power source", "wind power"),
}
RENEWABLE = {"geothermal", "hydro", "solar", "wind"}
SCOPES: dict[str, Promise] = {
    "read": _("See everything that you see"),
    "rent": _("Rent, start, stop and terminate instances; change SSH keys"),
    "manage": _("Change projects, members and tokens"),
}
VERBS: dict[str, Promise] = {
    "organization.view": _("See the organization"),
    "organization.change": _("Rename the organization"),
    "project.view": _("See projects"),
    "project.create": _("Make projects"),
    "project.change": _("Rename projects"),
    "member.view": _("See members"),
    "member.change": _("Change roles and remove members"),
    "invitation.view": _("See invitations"),
    "invitation.change": _("Invite people"),
    "token.view": _("See own tokens"),
    "token.change": _("Make and revoke own tokens"),
    "ssh_key.view": _("See SSH keys"),
    "ssh_key.change": _("Add and remove SSH keys"),
    "registry.view": _("See registries, not their passwords"),
    "registry.change": _("Add and remove registries"),
    "instance.view": _("See instances, their logs and costs"),
    "instance.change": _("Rent, start, stop and terminate instances"),
    "usage.view": _("See usage"),
    "balance.view": _("See the balance"),
    "bid.view": _("See bids"),
    "bid.change": _("Bid, raise and withdraw bids"),
    "volume.view": _("See volumes"),
    "volume.change": _("Make, attach, copy, grow and delete volumes"),
    "reservation.view": _("See reservations, quotes and listings"),
    "reservation.change": _("Reserve, extend, cancel, sell and lend"),
    "policy.view": _("See policies"),
    "policy.change": _("Change the policy of a project"),
    "organization_policy.change": _("Change the policy of the organization"),
    "invoice.view": _("See invoices"),
    "billing_details.view": _("See billing details"),
    "billing_details.change": _("Change billing details"),
    "payment.view": _("See cards and payments"),
    "payment.change": _("Pay by card and manage cards"),
    "quota.view": _("See quotas"),
    "quota_request.create": _("Ask for more quota"),
    "budget.view": _("See budgets"),
    "budget.change": _("Change budgets"),
    "wait.view": _("See orders that wait"),
    "wait.change": _("Let orders wait, and cancel them"),
    "event.view": _("See events of what they may see"),
    "webhook.view": _("See webhooks"),
    "webhook.change": _("Add, change and remove webhooks"),
    "audit.view": _("See the audit log"),
}
AUDITED: dict[str, Promise] = {
    "volume.create": _("Made a volume"),
    "volume.snapshot": _("Copied a volume"),
    "volume.attach": _("Attached a volume"),
    "volume.detach": _("Detached a volume"),
    "volume.resize": _("Made a volume bigger"),
    "volume.rename": _("Renamed a volume"),
    "volume.delete": _("Deleted a volume"),
    "volume.restore": _("Took back the deletion of a volume"),
    "instance.rent": _("Rented an instance"),
    "instance.start": _("Started an instance"),
    "instance.stop": _("Stopped an instance"),
    "instance.terminate": _("Terminated an instance"),
    "instance.rename": _("Renamed an instance"),
    "organization.found": _("Founded the organization"),
    "organization.change": _("Renamed the organization"),
    "policy.replace": _("Changed a policy"),
    "project.create": _("Made a project"),
    "project.change": _("Renamed a project"),
    "invitation.create": _("Invited somebody"),
    "invitation.revoke": _("Revoked an invitation"),
    "invitation.accept": _("Accepted an invitation"),
    "member.change": _("Changed a role"),
    "member.remove": _("Removed a member"),
    "token.create": _("Made a token"),
    "token.revoke": _("Revoked a token"),
    "ssh_key.add": _("Added an SSH key"),
    "ssh_key.remove": _("Removed an SSH key"),
    "registry.add": _("Added a registry"),
    "registry.remove": _("Removed a registry"),
    "webhook.add": _("Added a webhook"),
    "webhook.change": _("Changed a webhook"),
    "webhook.rotate": _("Made a new secret for a webhook"),
    "webhook.remove": _("Removed a webhook"),
    "webhook.replay": _("Sent events again"),
    "ssh.open": _("Entered an instance by SSH"),
    "ssh.close": _("Left an instance by SSH"),
    "ssh.refuse": _("Was refused by an instance’s SSH gateway"),
    "quota.change": _("Changed a quota"),
    "quota.request": _("Asked for more quota"),
    "quota.withdraw": _("Withdrew a request for quota"),
    "quota.approve": _("Approved a request for quota"),
    "quota.deny": _("Denied a request for quota"),
    "quota.rule": _("Changed a rule that approves quota"),
    "budget.change": _("Changed a budget"),
    "idle.change": _("Changed what is done about idle instances"),
    "wait.begin": _("Let an order wait"),
    "wait.cancel": _("Cancelled an order that waited"),
    "wait.start": _("Started an order that waited"),
    "wait.expire": _("Let go of an order that waited too long"),
    "billing_details.change": _("Changed the billing details"),
    "payment.order": _("Ordered a top-up by card"),
    "payment.cancel": _("Cancelled a payment by card"),
    "card.default": _("Made a card the default"),
    "card.remove": _("Removed a card"),
    "automatic_top_up.change": _("Changed the automatic top-up"),
    "refund.propose": _("Proposed a refund"),
    "refund.approve": _("Approved a refund"),
    "refund.decline": _("Declined a refund"),
    "reconciliation.run": _("Reconciled with the card processor"),
    "reconciliation.note": _("Explained a difference with the card processor"),
    "invoice.issue": _("Issued an invoice"),
    "credit_note.propose": _("Proposed a credit note"),
    "credit_note.issue": _("Issued a credit note"),
    "credit_note.decline": _("Declined a credit note"),
    "seller.name": _("Named who sells"),
    "credit.grant": _("Granted promotional credit"),
    "project.suspend": _("Suspended a project"),
    "project.resume": _("Resumed a project"),
    "node.announce": _("Announced a node"),
    "node.join_token": _("Issued a join token"),
    "node.cordon": _("Cordoned a node"),
    "node.accept_inventory": _("Accepted the GPUs of a node"),
    "node.uncordon": _("Uncordoned a node"),
    "node.drain": _("Drained a node"),
    "cluster.add": _("Added a Slurm cluster"),
    "cluster.change": _("Changed a Slurm cluster"),
    "cluster.errands": _("Changed the user of a Slurm cluster’s errands"),
    "cluster.retire": _("Retired a Slurm cluster"),
    "cluster.token": _("Changed the token of a Slurm cluster"),
    "gpu.quarantine": _("Quarantined a GPU"),
    "gpu.release": _("Led a GPU to the gate"),
    "repair.release": _("Led a repair to the gate"),
    "repair.replaced": _("Noted that a part was replaced"),
    "breaker.close": _("Closed a breaker"),
    "site.create": _("Made a site"),
    "fabric.create": _("Made a fabric"),
    "offer.create": _("Made an offer"),
    "offer.change": _("Changed an offer's terms"),
    "price.publish": _("Published a price"),
    "price_list.draft": _("Drafted a price list"),
    "price_list.save": _("Edited a price list"),
    "price_list.simulate": _("Simulated a price list"),
    "price_list.approve": _("Approved a price list"),
    "price_list.schedule": _("Scheduled a price list"),
    "price_list.withdraw": _("Withdrew a price list"),
    "commitment.propose": _("Proposed a commitment"),
    "commitment.agree": _("Agreed to a commitment"),
    "commitment.decline": _("Declined a commitment"),
}

# Where use was sold, as costs are told apart; storage has no market of its own.
MARKETS: dict[str, Promise] = {
    "on_demand": _("On demand"),
    "spot": _("Spot"),
    "reserved": _("Reserved hours, paid ahead"),
    "storage": _("Storage"),
    "adjustment": _("Tiers and commitments"),
}

# Why a part under an instance that runs on is to be repaired: texts of the table of health rules.
HEALTH_REASONS: dict[str, Promise] = {
    "The driver asks for a restart of the node": _("The driver asks for a restart of the node"),
    "The driver asks that the GPU and its peers are drained and reset": _(
        "The driver asks that the GPU and its peers are drained and reset"
    ),
    "The driver asks that the GPU is drained and reset": _("The driver asks that the GPU is drained and reset"),
    "The driver asks for a recovery of the NVLink domain": _("The driver asks for a recovery of the NVLink domain"),
    "The GPU has fallen off the bus": _("The GPU has fallen off the bus"),
    "The GPU replaces a row of its memory at its next reset": _(
        "The GPU replaces a row of its memory at its next reset"
    ),
    "The GPU driver of the node does not answer or does not match its library": _(
        "The GPU driver of the node does not answer or does not match its library"
    ),
    "The node's own hardware reports an error": _("The node's own hardware reports an error"),
    "The GPU slows down because it is too hot": _("The GPU slows down because it is too hot"),
    "The GPU slows down because its power supply tells it to": _(
        "The GPU slows down because its power supply tells it to"
    ),
    "The GPU's PCIe link is slower than it should be": _("The GPU's PCIe link is slower than it should be"),
    "The NVLink domain of the node is not complete": _("The NVLink domain of the node is not complete"),
    "The GPU asks for a restart of its machine": _("The GPU asks for a restart of its machine"),
    "The GPU's power cables are not well connected": _("The GPU's power cables are not well connected"),
    "The GPU's memory had several contained errors": _("The GPU's memory had several contained errors"),
    "Programs failed on this GPU again and again": _("Programs failed on this GPU again and again"),
    "A capacity manager took it out of service": _("A capacity manager took it out of service"),
    "The node was repaired too often": _("The node was repaired too often"),
}


def health_reason(text: str) -> str:
    """Return why a part is to be repaired; a reason that a person typed stays as it is."""
    return str(HEALTH_REASONS.get(text, text))


def country(code: str) -> str:
    """Return the country's name, or its code where we know no name."""
    return str(COUNTRIES.get(code.upper(), code))


def power_source(source: str) -> str:
    """Return what feeds a site, in words."""
    return str(POWER_SOURCES.get(source, source))
