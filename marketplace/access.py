"""The only door to tenant rows: who is asking, and may they.

Everything here answers NotFound for what the actor may not know exists, and
Forbidden for what they may see but not do. There is no other way to a row of a
tenant for a view.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from django.db.models import Q, QuerySet
from django.utils.translation import gettext

from billing.models import BillingDetails, Commitment, Invoice, InvoiceLine, Runway, UsageSpan
from marketplace.errors import BadOrder, Forbidden, NotFound
from marketplace.models import (
    ApiToken,
    AuditEntry,
    Bid,
    Invitation,
    Membership,
    Organization,
    Project,
    QuotaRequest,
    Role,
    SshKey,
    User,
    WaitingOrder,
)
from marketplace.permissions import ORGANIZATION_WIDE, allows, roles_of, scope_of
from marketplace.token_rows import PROJECT, PROJECTS, TOKEN, live_tokens
from provisioning import volumes as kept_volumes
from provisioning.models import Instance, InstanceEvent, PlacementDecision, Quota, RegistryCredential, Volume

LAST_USED_GRAIN = timedelta(minutes=1)
ACTOR_NAME_LENGTH_MAX = 254


@dataclass(frozen=True)
class Actor:
    """Who asks: a person in the portal, or a token of a person."""

    user: User
    token: ApiToken | None = None
    request_id: str = ""

    is_authenticated = True

    @property
    def name(self) -> str:
        """What the audit shows; as long as its column at most."""
        name = f"{self.user.email} ({self.token.name})" if self.token else self.user.email
        return name[:ACTOR_NAME_LENGTH_MAX]


class TokenExpired(Exception):
    """The token was good once."""


def secret_hash(secret: str) -> str:
    """Return the form in which a token's secret rests: SHA-256, since the secret itself is 256 random bits."""
    return sha256(secret.encode()).hexdigest()


def actor_of_token(secret: str, *, request_id: str, at: datetime) -> Actor | None:
    """Return who a token speaks for, or None when it is unknown. Raises TokenExpired. One query."""
    token = next(iter(TOKEN(secret_hash(secret))), None)
    if token is None:
        return None
    if token.expires_at <= at:
        raise TokenExpired(f"The token {token.name} expired on {token.expires_at:%Y-%m-%d}.")
    if token.last_used_at is None or at - token.last_used_at > LAST_USED_GRAIN:
        ApiToken.objects.filter(pk=token.pk).update(last_used_at=at)
    return Actor(user=token.membership.user, token=token, request_id=request_id)


def renewed(actor: Actor, *, at: datetime) -> Actor | None:
    """Return a token's actor as things stand now, or None once the token is no longer good: for long answers."""
    assert actor.token is not None
    token = live_tokens().filter(pk=actor.token.pk, expires_at__gt=at).first()
    if token is None:
        return None
    return Actor(user=token.membership.user, token=token, request_id=actor.request_id)


def memberships(actor: Actor) -> QuerySet[Membership]:
    """Return the memberships through which this actor sees anything; a token has exactly its own."""
    found = Membership.objects.filter(user=actor.user).select_related("organization")
    return found.filter(pk=actor.token.membership_id) if actor.token else found


def _membership(actor: Actor, organization_id: int) -> Membership:
    if actor.token is not None:
        # The token came with its membership: no query.
        if actor.token.membership.organization_id != organization_id:
            raise NotFound
        return actor.token.membership
    membership = memberships(actor).filter(organization_id=organization_id).first()
    if membership is None:
        raise NotFound
    return membership


def _check(actor: Actor, organization_id: int, verb: str) -> Membership:
    membership = _membership(actor, organization_id)
    if not allows(Role(membership.role), verb):
        raise Forbidden(
            gettext("Your role %(role)s may not do this; ask an owner or admin.")
            % {"role": membership.get_role_display()}
        )
    _check_token(actor.token, verb)
    return membership


def _check_token(token: ApiToken | None, verb: str) -> None:
    if token is None:
        return
    if scope_of(verb) not in token.scopes:
        raise Forbidden(
            gettext("The token %(token)s lacks the scope “%(scope)s”.") % {"token": token.name, "scope": scope_of(verb)}
        )
    if token.project_id is not None and verb in ORGANIZATION_WIDE:
        raise Forbidden(
            gettext("The token %(token)s is for one project; this concerns the whole organization.")
            % {"token": token.name}
        )


def _memberships_for(actor: Actor, verb: str) -> QuerySet[Membership]:
    """Return the memberships in which this actor may do a verb, for lists; Forbidden when its token never may."""
    _check_token(actor.token, verb)
    return memberships(actor).filter(role__in=roles_of(verb))


def may(actor: Actor, organization: Organization, verb: str) -> bool:
    """Return whether this actor may do this verb there; pages use it to leave out what would be refused."""
    try:
        _check(actor, organization.pk, verb)
    except (NotFound, Forbidden):
        return False
    return True


def organization_for(actor: Actor, organization_id: str | None, *, verb: str) -> Organization:
    """Return an organization, the actor's own one if no id is given."""
    if organization_id is None:
        membership = actor.token.membership if actor.token else memberships(actor).order_by("pk").first()
        if membership is None:
            raise NotFound
        organization = membership.organization
    else:
        found = Organization.objects.filter(public_id=organization_id).first()
        if found is None:
            raise NotFound
        organization = found
    _check(actor, organization.pk, verb)
    return organization


def organizations(actor: Actor) -> QuerySet[Organization]:
    """Return the organizations that this actor may see."""
    return Organization.objects.filter(pk__in=_memberships_for(actor, "organization.view").values("organization"))


def projects(actor: Actor) -> QuerySet[Project]:
    """Return the projects that this actor may see."""
    return _projects(actor, _memberships_for(actor, "project.view"))


def _named_projects(actor: Actor, project_id: str | None) -> list[Project]:
    """Return the project that an order names; without an id, two at most of those that it could mean."""
    if actor.token is None:
        chosen = _projects(actor, memberships(actor)).order_by("pk")
        return list((chosen if project_id is None else chosen.filter(public_id=project_id))[:2])
    organization_id = actor.token.membership.organization_id
    if project_id is None:
        return PROJECTS(organization_id)
    found = PROJECT(organization_id, project_id)
    return [project for project in found if actor.token.project_id in {None, project.pk}]


def _projects(actor: Actor, through: QuerySet[Membership]) -> QuerySet[Project]:
    found = Project.objects.filter(organization__in=through.values("organization")).select_related("organization")
    if actor.token is not None and actor.token.project_id is not None:
        found = found.filter(pk=actor.token.project_id)
    return found


def project_for(actor: Actor, project_id: str | None, *, verb: str) -> Project:
    """Return a project; without an id the token's own, or the only one that the actor has.

    Raises BadOrder when there are several: nobody wants to rent in the wrong one.
    """
    own = own_project(actor)
    if project_id is None and own is not None:
        project = own
    else:
        found = _named_projects(actor, project_id)
        if not found:
            raise NotFound
        if len(found) > 1:
            raise BadOrder("project", gettext("There are several projects; say which one."))
        project = found[0]
    membership = _check(actor, project.organization_id, verb)
    project.organization = membership.organization
    return project


def instances(actor: Actor) -> QuerySet[Instance]:
    """Return the instances that this actor may see, with what their pages show."""
    return _instances(actor, _memberships_for(actor, "instance.view"))


def _instances(actor: Actor, through: QuerySet[Membership]) -> QuerySet[Instance]:
    found = Instance.objects.select_related("project__organization", "offer__site", "price_version", "reservation")
    return found.filter(project__in=_projects(actor, through).values("pk"))


def instance_for(actor: Actor, instance_id: str, *, verb: str) -> Instance:
    """Return an instance by its id."""
    instance = _instances(actor, memberships(actor)).filter(public_id=instance_id).first()
    if instance is None:
        raise NotFound
    _check(actor, instance.project.organization_id, verb)
    if instance.is_off_limits and verb != "instance.view":
        raise Forbidden(gettext("It verifies a result, and ends by itself."))
    return instance


def bids(actor: Actor) -> QuerySet[Bid]:
    """Return the bids that this actor may see, with what their pages show."""
    return _bids(actor, _memberships_for(actor, "bid.view"))


def _bids(actor: Actor, through: QuerySet[Membership]) -> QuerySet[Bid]:
    found = Bid.objects.select_related("project__organization", "offer__site", "instance__price_version")
    return found.filter(project__in=_projects(actor, through).values("pk"))


def bid_for(actor: Actor, bid_id: str, *, verb: str) -> Bid:
    """Return a bid by its id."""
    bid = _bids(actor, memberships(actor)).filter(public_id=bid_id).first()
    if bid is None:
        raise NotFound
    _check(actor, bid.project.organization_id, verb)
    # One project, loaded once.
    bid.instance.project, bid.instance.offer = bid.project, bid.offer
    return bid


def volumes(actor: Actor) -> QuerySet[Volume]:
    """Return the volumes that this actor may see, with what their pages show; those that are gone stay in the list."""
    return _volumes(actor, _memberships_for(actor, "volume.view"))


def _volumes(actor: Actor, through: QuerySet[Membership]) -> QuerySet[Volume]:
    return kept_volumes.shown(Volume.objects.filter(project__in=_projects(actor, through).values("pk")))


def volume_for(actor: Actor, volume_id: str, *, verb: str) -> Volume:
    """Return a volume by its id."""
    volume = _volumes(actor, memberships(actor)).filter(public_id=volume_id).first()
    if volume is None:
        raise NotFound
    _check(actor, volume.project.organization_id, verb)
    return volume


def volume_of(project: Project, name: str) -> Volume:
    """Return a project's volume by its id or name; the caller came through `project_for`."""
    alive = kept_volumes.shown(Volume.objects.filter(project=project)).exclude(state=Volume.State.DELETED)
    volume = alive.filter(Q(public_id=name) | Q(name=name)).first()
    if volume is None:
        raise NotFound
    return volume


def events(instance: Instance) -> QuerySet[InstanceEvent]:
    """Return what happened to an instance; the caller came through `instance_for`."""
    return InstanceEvent.objects.filter(instance=instance)


def placements(instance: Instance) -> QuerySet[PlacementDecision]:
    """Return placement's decisions about an instance; the caller came through `instance_for`."""
    return PlacementDecision.objects.filter(instance=instance).select_related("instance", "project", "offer")


def placement_for(actor: Actor, placement_id: str, *, verb: str) -> PlacementDecision:
    """Return a decision of placement about something of a project that this actor may see."""
    seen = PlacementDecision.objects.filter(project__in=_projects(actor, memberships(actor)).values("pk"))
    row = seen.filter(public_id=placement_id).select_related("instance", "project", "offer").first()
    if row is None:
        raise NotFound
    _check(actor, row.project.organization_id, verb)
    return row


def member_for(actor: Actor, membership_id: str, *, verb: str) -> Membership:
    """Return somebody's membership in one of the actor's organizations."""
    member = Membership.objects.filter(public_id=membership_id).select_related("organization", "user").first()
    if member is None:
        raise NotFound
    _check(actor, member.organization_id, verb)
    return member


def invitation_for(actor: Actor, invitation_id: str, *, verb: str) -> Invitation:
    """Return an invitation to one of the actor's organizations."""
    invitation = Invitation.objects.filter(public_id=invitation_id).select_related("organization").first()
    if invitation is None:
        raise NotFound
    _check(actor, invitation.organization_id, verb)
    return invitation


def tokens(actor: Actor, organization: Organization) -> QuerySet[ApiToken]:
    """Return the tokens that this actor may manage: their own; everybody's for those who change members."""
    found = ApiToken.objects.filter(membership__organization=organization, revoked_at=None)
    found = found.select_related("membership__user", "project")
    if actor.token is not None and actor.token.project_id is not None:
        found = found.filter(project=actor.token.project_id)
    if may(actor, organization, "member.change"):
        return found
    return found.filter(membership__user=actor.user)


def token_for(actor: Actor, token_id: str, *, verb: str) -> ApiToken:
    """Return a token that this actor may manage."""
    token = ApiToken.objects.filter(public_id=token_id).select_related("membership__organization").first()
    if token is None:
        raise NotFound
    _check(actor, token.membership.organization_id, verb)
    found = tokens(actor, token.membership.organization).filter(pk=token.pk).first()
    if found is None:
        raise NotFound
    return found


def ssh_key_for(actor: Actor, key_id: str, *, verb: str) -> SshKey:
    """Return an SSH key of a project that this actor may see."""
    seen = _projects(actor, memberships(actor)).values("pk")
    key = SshKey.objects.filter(public_id=key_id, project__in=seen).select_related("project__organization").first()
    if key is None:
        raise NotFound
    _check(actor, key.project.organization_id, verb)
    return key


def registry_for(actor: Actor, registry_id: str, *, verb: str) -> RegistryCredential:
    """Return a way into a registry of a project that this actor may see."""
    seen = RegistryCredential.objects.filter(project__in=_projects(actor, memberships(actor)).values("pk"))
    credential = seen.filter(public_id=registry_id).select_related("project__organization").first()
    if credential is None:
        raise NotFound
    _check(actor, credential.project.organization_id, verb)
    return credential


def members(organization: Organization) -> QuerySet[Membership]:
    """Return the people of an organization; the caller came through `organization_for`."""
    return Membership.objects.filter(organization=organization).select_related("user")


def invitations(organization: Organization) -> QuerySet[Invitation]:
    """Return an organization's invitations; the caller came through `organization_for`."""
    return Invitation.objects.filter(organization=organization)


def ssh_keys(project: Project) -> QuerySet[SshKey]:
    """Return a project's SSH keys; the caller came through `project_for`."""
    return SshKey.objects.filter(project=project).select_related("project")


def registries(project: Project) -> QuerySet[RegistryCredential]:
    """Return a project's ways into registries; the caller came through `project_for`."""
    return RegistryCredential.objects.filter(project=project).select_related("project")


def quotas(actor: Actor) -> QuerySet[Quota]:
    """Return the quotas of the projects that this actor may see, and those of their organizations."""
    seen = _of_projects_or_whole(actor, _memberships_for(actor, "quota.view"))
    return Quota.objects.filter(seen).select_related("project", "organization")


def _of_projects_or_whole(actor: Actor, through: QuerySet[Membership]) -> Q:
    """What belongs to a project that is seen, or to its whole organization; a project's token sees only the first."""
    seen = Q(project__in=_projects(actor, through).values("pk"))
    if actor.token is None or actor.token.project_id is None:
        seen |= Q(project=None, organization__in=through.values("organization"))
    return seen


def quota_requests(actor: Actor) -> QuerySet[QuotaRequest]:
    """Return the requests for quota that this actor may see."""
    return _quota_requests(actor, _memberships_for(actor, "quota.view"))


def _quota_requests(actor: Actor, through: QuerySet[Membership]) -> QuerySet[QuotaRequest]:
    seen = _of_projects_or_whole(actor, through)
    return QuotaRequest.objects.filter(seen).select_related("project", "organization")


def quota_request_for(actor: Actor, request_id: str, *, verb: str) -> QuotaRequest:
    """Return a request for quota by its id."""
    found = _quota_requests(actor, memberships(actor)).filter(public_id=request_id).first()
    if found is None:
        raise NotFound
    _check(actor, found.organization_id, verb)
    return found


def waiting_orders(actor: Actor) -> QuerySet[WaitingOrder]:
    """Return the orders in queues that this actor may see, with what their pages show."""
    return _waiting_orders(actor, _memberships_for(actor, "wait.view"))


def _waiting_orders(actor: Actor, through: QuerySet[Membership]) -> QuerySet[WaitingOrder]:
    found = WaitingOrder.objects.select_related("project__organization", "offer__site", "instance")
    return found.filter(project__in=_projects(actor, through).values("pk"))


def waiting_order_for(actor: Actor, entry_id: str, *, verb: str) -> WaitingOrder:
    """Return an order in a queue by its id."""
    entry = _waiting_orders(actor, memberships(actor)).filter(public_id=entry_id).first()
    if entry is None:
        raise NotFound
    _check(actor, entry.project.organization_id, verb)
    return entry


def usage_spans(actor: Actor, organization: Organization) -> QuerySet[UsageSpan]:
    """Return what was measured for an organization; a token of one project sees that project's."""
    spans = UsageSpan.objects.filter(organization=organization).select_related("price_version")
    own = own_project(actor)
    return spans if own is None else spans.filter(labels__project=own.public_id)


def usage_span_for(actor: Actor, span_id: str, *, verb: str) -> UsageSpan:
    """Return one interval of use of one of the actor's organizations."""
    span = UsageSpan.objects.filter(public_id=span_id).select_related("organization", "price_version").first()
    if span is None:
        raise NotFound
    _check(actor, span.organization_id, verb)
    if not usage_spans(actor, span.organization).filter(pk=span.pk).exists():
        raise NotFound
    return span


def own_project(actor: Actor) -> Project | None:
    """Return the one project that a token is for, whose figures alone it sees; None sees the whole organization's."""
    # Only a token that has a project asks for it: most have none, and then there is no query.
    return actor.token.project if actor.token is not None and actor.token.project_id is not None else None


def commitments(organization: Organization) -> QuerySet[Commitment]:
    """Return what an organization agreed to use; the caller came through `organization_for`."""
    found = Commitment.objects.filter(organization=organization, state=Commitment.State.AGREED)
    return found.prefetch_related("prices")


def invoices(organization: Organization) -> QuerySet[Invoice]:
    """Return an organization's invoices and credit notes; the caller came through `organization_for`."""
    return Invoice.objects.filter(organization=organization).select_related("organization", "credited", "collection")


def invoice_for(actor: Actor, invoice_id: str, *, verb: str) -> Invoice:
    """Return an invoice or credit note of one of the actor's organizations."""
    related = Invoice.objects.select_related("organization", "credited", "collection")
    found = related.filter(public_id=invoice_id).first()
    if found is None:
        raise NotFound
    _check(actor, found.organization_id, verb)
    return found


def invoice_lines(invoice: Invoice) -> QuerySet[InvoiceLine]:
    """Return the lines of an invoice; the caller came through `invoice_for`."""
    return InvoiceLine.objects.filter(invoice=invoice).select_related("price_version")


def billing_details(organization: Organization) -> BillingDetails | None:
    """Return who an organization is on paper, if it has said so; the caller came through `organization_for`."""
    return BillingDetails.objects.filter(organization=organization).first()


def runway_of(organization: Organization) -> Runway | None:
    """Return how long an organization's funds last, if it ever used anything."""
    return Runway.objects.filter(organization=organization).first()


def audit_entries(organization: Organization) -> QuerySet[AuditEntry]:
    """Return what was changed in an organization, newest first; the caller came through `organization_for`."""
    return AuditEntry.objects.filter(organization=organization)


def person(user: User, request_id: str = "") -> Actor:
    """Return the actor that a signed-in person is."""
    return Actor(user=user, request_id=request_id)
