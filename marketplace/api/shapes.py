"""The shapes of requests and answers: requests are checked by them, answers are tested against them."""

from typing import Any

from rest_framework import serializers

from billing.models import Unit, UsageSpan
from billing.runway import Level
from marketplace.api.price_shapes import Amount, ListedPrice, Price
from marketplace.models import Offer, Role
from marketplace.permissions import SCOPES
from marketplace.tenants import EMAIL_LENGTH_MAX
from marketplace.tokens import LIFE_DAYS_DEFAULT, LIFE_DAYS_MAX
from provisioning.models import Instance, Phase, Reason, Site


class Shape(serializers.Serializer[Any]):
    """A request body refuses names that it does not know, so that a typing error is not ignored."""

    def to_internal_value(self, data: Any) -> Any:
        unknown = sorted(set(data) - set(self.fields)) if isinstance(data, dict) else []
        faults: dict[str, Any] = {name: ["There is no such field."] for name in unknown}
        try:
            read = super().to_internal_value(data)
        except serializers.ValidationError as refusal:
            found = refusal.detail if isinstance(refusal.detail, dict) else {"non_field_errors": refusal.detail}
            raise serializers.ValidationError({**found, **faults}) from refusal
        if faults:
            raise serializers.ValidationError(faults)
        return read


class Text(serializers.CharField):
    """A JSON string; a number is not quietly made into one."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class Count(serializers.IntegerField):
    """A JSON whole number; neither `"2"` nor `2.0`."""

    def to_internal_value(self, data: Any) -> int:
        if not isinstance(data, int) or isinstance(data, bool):
            self.fail("invalid")
        return super().to_internal_value(data)


# Requests


class RenameInstance(Shape):
    name = Text(max_length=63)


class NameOnly(Shape):
    name = Text(max_length=100)


class CreateProject(Shape):
    name = Text(max_length=100)
    organization = Text(max_length=32, required=False)


class ChangeRole(Shape):
    role = serializers.ChoiceField(choices=Role.choices)


class CreateInvitation(Shape):
    email = serializers.EmailField(max_length=EMAIL_LENGTH_MAX)
    role = serializers.ChoiceField(choices=Role.choices)
    organization = Text(max_length=32, required=False)


class CreateToken(Shape):
    name = Text(max_length=100)
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=SCOPES), min_length=1)
    days = Count(min_value=1, max_value=LIFE_DAYS_MAX, default=LIFE_DAYS_DEFAULT)
    project = Text(max_length=32, required=False)
    organization = Text(max_length=32, required=False)


class AddSshKey(Shape):
    name = Text(max_length=100)
    public_key = Text(max_length=16_384)
    project = Text(max_length=32, required=False)


class DryRunQuery(serializers.Serializer[Any]):
    dry_run = serializers.BooleanField(default=False, help_text="check and price it, but do nothing")


class OfferQuery(serializers.Serializer[Any]):
    gpu_model = serializers.CharField(max_length=40, required=False)
    country = serializers.CharField(max_length=2, required=False)
    min_gpus = serializers.IntegerField(min_value=1, required=False, help_text="at least so many free now")
    available = serializers.BooleanField(required=False, default=False, help_text="only what has a free GPU now")


class InstanceQuery(serializers.Serializer[Any]):
    project = serializers.CharField(max_length=32, required=False)
    phase = serializers.ChoiceField(choices=Phase.choices, required=False)
    name = serializers.CharField(max_length=63, required=False)


class StreamQuery(serializers.Serializer[Any]):
    cursor = serializers.CharField(
        max_length=100_000, required=False, allow_blank=True, default="", help_text="`next_cursor` of the page before"
    )


class LogQuery(StreamQuery):
    limit = serializers.IntegerField(
        min_value=1, max_value=1_048_576, default=262_144, help_text="stop after about so many bytes"
    )


class UsageQuery(serializers.Serializer[Any]):
    since = serializers.DateTimeField(required=False)
    until = serializers.DateTimeField(required=False)
    instance = serializers.CharField(max_length=32, required=False)


class OrganizationQuery(serializers.Serializer[Any]):
    organization = serializers.CharField(max_length=32, required=False, help_text="default: the token's own")


class ProjectQuery(serializers.Serializer[Any]):
    project = serializers.CharField(max_length=32, required=False)


# Answers


class FaultyField(serializers.Serializer[Any]):
    pointer = serializers.CharField(help_text="JSON pointer to the field")
    detail = serializers.CharField()


REFUSED = ("default", "application/problem+json")


class Problem(serializers.Serializer[Any]):
    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField()
    instance = serializers.CharField()
    code = serializers.CharField(help_text="stable; documented under /api/problems")
    charged = serializers.BooleanField(help_text="whether anything was charged; a refusal never is")
    retry = serializers.ChoiceField(choices=["none", "same_request", "new_request", "after"])
    suggestion = serializers.CharField()
    errors = FaultyField(many=True)  # type: ignore[assignment]
    placement = serializers.CharField(required=False, help_text="where no capacity was found: GET /placements/{id}")
    request_id = serializers.CharField()


class NamedRef(serializers.Serializer[Any]):
    id = serializers.CharField()
    name = serializers.CharField()


class SiteAnswer(NamedRef):
    slug = serializers.CharField()
    kind = serializers.ChoiceField(choices=Site.Kind.choices)
    city = serializers.CharField()
    country = serializers.CharField()
    jurisdiction = serializers.CharField()
    latitude = serializers.CharField()
    longitude = serializers.CharField()
    grid_zone = serializers.CharField()
    power_source = serializers.CharField()
    pue = serializers.CharField()
    certifications = serializers.ListField(child=serializers.CharField())
    volume_kind = serializers.ChoiceField(choices=Site.VolumeKind.choices, help_text="where volumes lie")


class SupplierAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    name = serializers.CharField()


class OfferAnswer(NamedRef):
    slug = serializers.CharField()
    gpu_model = serializers.CharField()
    gpu_memory_gib = serializers.IntegerField()
    runtime = serializers.ChoiceField(
        choices=Offer.Runtime.choices, help_text="podman runs images, the others commands"
    )
    gpus_per_node = serializers.IntegerField()
    min_gpus = serializers.IntegerField()
    max_gpus = serializers.IntegerField()
    interconnect = serializers.CharField()
    site = SiteAnswer()
    supplier = SupplierAnswer()
    price = ListedPrice()
    available_gpus = serializers.IntegerField()
    largest_replica = serializers.IntegerField(help_text="the most free GPUs on one node")
    by_auction = serializers.BooleanField(help_text="whether it is sold by auction too; /offers/{id}/spot says how")
    as_of = serializers.DateTimeField()


class SiteRef(serializers.Serializer[Any]):
    name = serializers.CharField()
    country = serializers.CharField()


class OfferRef(NamedRef):
    slug = serializers.CharField()
    gpu_model = serializers.CharField()
    site = SiteRef()


class ProgressAnswer(serializers.Serializer[Any]):
    step = serializers.CharField(help_text="such as pull")
    title = serializers.CharField()
    replicas = serializers.IntegerField(help_text="how many are at it")
    done_bytes = serializers.IntegerField()
    total_bytes = serializers.IntegerField(allow_null=True, help_text="null while it is not known")
    bytes_per_s = serializers.IntegerField()
    percent = serializers.IntegerField(allow_null=True)


class StepAnswer(serializers.Serializer[Any]):
    name = serializers.ChoiceField(choices=["reserve", "prepare", "verify", "run"])
    title = serializers.CharField()
    state = serializers.ChoiceField(choices=["waiting", "active", "done", "failed"])
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)
    elapsed_ms = serializers.IntegerField(allow_null=True)
    typical_ms = serializers.IntegerField(allow_null=True)
    progress = ProgressAnswer(allow_null=True, help_text="what is under way in this step, summed over the replicas")


class CostAnswer(serializers.Serializer[Any]):
    billing = serializers.ChoiceField(choices=["not_started", "running", "paused", "ended"])
    currency = serializers.CharField()
    per_second = serializers.CharField()
    per_hour = serializers.CharField()
    per_day = serializers.CharField()
    so_far = serializers.CharField()
    gpu_milliseconds = serializers.IntegerField()


class ActionAnswer(serializers.Serializer[Any]):
    available = serializers.BooleanField()
    reason = serializers.CharField(allow_null=True)


class ActionsAnswer(serializers.Serializer[Any]):
    start = ActionAnswer()
    stop = ActionAnswer()
    terminate = ActionAnswer()
    rename = ActionAnswer()


class PlaceAnswer(serializers.Serializer[Any]):
    replica = serializers.IntegerField()
    node = serializers.CharField()
    gpus = serializers.ListField(child=serializers.CharField())


class PublishedPortAnswer(serializers.Serializer[Any]):
    port = serializers.IntegerField(help_text="inside the instance")
    host = serializers.CharField()
    host_port = serializers.IntegerField()


class AccessAnswer(serializers.Serializer[Any]):
    replica = serializers.IntegerField()
    host = serializers.CharField()
    ssh_port = serializers.IntegerField(allow_null=True, help_text="null where the node has no SSH gateway")
    user = serializers.CharField(help_text="the SSH user name that means this replica")
    host_key = serializers.CharField(help_text="the gateway's public key, as in known_hosts")
    ports = PublishedPortAnswer(many=True)


class MountAnswer(NamedRef):
    path = serializers.CharField()
    read_only = serializers.BooleanField()  # type: ignore[assignment]


class RepairAnswer(serializers.Serializer[Any]):
    part = serializers.ChoiceField(
        choices=["gpu", "node"], help_text="what is to be repaired: a GPU of its, or its node"
    )
    node = serializers.CharField()
    reason = serializers.CharField()
    since = serializers.DateTimeField()
    ends_at = serializers.DateTimeField(
        allow_null=True, help_text="when it is ended for the repair; null: it may go on, and the repair waits"
    )
    node_held = serializers.BooleanField(help_text="whether nothing new is placed on the node")


class RiskAnswer(serializers.Serializer[Any]):
    level = serializers.ChoiceField(choices=["elevated"])
    interruption = serializers.CharField(help_text="the id that its notice would have")
    advised_at = serializers.DateTimeField()


class InstanceAnswer(NamedRef):
    project = NamedRef()
    offer = OfferRef()
    market = serializers.ChoiceField(choices=Instance.Market.choices)
    attach = serializers.ChoiceField(choices=Instance.Attach.choices)
    reservation = serializers.CharField(allow_null=True, help_text="inside which it runs, paid ahead")
    paid_by = serializers.CharField(
        allow_null=True, help_text="what pays for its hours instead of you: a job, a claim or an agreement"
    )
    replicas = serializers.IntegerField()
    gpus_per_replica = serializers.IntegerField()
    gpus = serializers.IntegerField()
    command = serializers.ListField(child=serializers.CharField())
    env_names = serializers.ListField(child=serializers.CharField(), help_text="values are not shown again")
    image = serializers.CharField(allow_null=True)
    ports = serializers.ListField(child=serializers.IntegerField(), help_text="inside it, published outside")
    lease = serializers.ChoiceField(choices=Instance.Lease.choices)
    lease_s = serializers.IntegerField(help_text="seconds without contact to us after which its node ends it")
    on_failure = serializers.ChoiceField(choices=Instance.OnFailure.choices)
    placement = serializers.DictField(help_text="how it is placed, where something else than packing was asked for")
    restarts = serializers.IntegerField(help_text="how often it was started again elsewhere by itself")
    restart_at = serializers.DateTimeField(allow_null=True, help_text="when that happens next, if it is due")
    desired = serializers.ChoiceField(choices=Instance.Desired.choices)
    phase = serializers.ChoiceField(choices=Phase.choices)
    health = serializers.ChoiceField(choices=Instance.Health.choices)
    reason = serializers.ChoiceField(choices=Reason.choices)
    message = serializers.CharField()
    retryable = serializers.BooleanField()
    generation = serializers.IntegerField()
    observed_generation = serializers.IntegerField()
    exit_code = serializers.IntegerField(allow_null=True)
    steps = StepAnswer(many=True)
    cost = CostAnswer()
    actions = ActionsAnswer()
    nodes = PlaceAnswer(many=True)
    volumes = MountAnswer(many=True)
    repair = RepairAnswer(allow_null=True, help_text="what is under way on its machine while it is degraded")
    interruption = serializers.CharField(
        allow_null=True, help_text="the id of what will take its GPUs; see its `interruptions`"
    )
    risk = RiskAnswer(allow_null=True, help_text="the next auction may give its GPUs to others; no notice yet")
    access = AccessAnswer(many=True, help_text="how each replica that runs is reached; empty while none does")
    created_at = serializers.DateTimeField()
    ready_at = serializers.DateTimeField(allow_null=True)
    ended_at = serializers.DateTimeField(allow_null=True)
    as_of = serializers.DateTimeField()


class DryRunAnswer(serializers.Serializer[Any]):
    would_rent = serializers.BooleanField()
    offer = OfferRef()
    gpus = serializers.IntegerField()
    price = Price()
    per_hour = Amount()
    first_hour_hold = Amount()


class LogPiece(serializers.Serializer[Any]):
    replica = serializers.IntegerField()
    offset = serializers.IntegerField()
    text = serializers.CharField()


class LogAnswer(serializers.Serializer[Any]):
    data = LogPiece(many=True)  # type: ignore[assignment]
    next_cursor = serializers.CharField()
    complete = serializers.BooleanField(help_text="no more will ever come")


class EventAnswer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    kind = serializers.CharField()
    run = serializers.IntegerField()
    old_phase = serializers.CharField()
    new_phase = serializers.CharField()
    reason = serializers.CharField()
    message = serializers.CharField()


class UsageAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    resource = serializers.CharField()
    name = serializers.CharField()
    meter = serializers.ChoiceField(choices=UsageSpan.Meter.values)
    unit = serializers.ChoiceField(choices=Unit.values, help_text="what quantity counts")
    quantity = serializers.IntegerField()
    gpus = serializers.IntegerField(help_text="0 for what is no GPU")
    started_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)
    unit_milliseconds = serializers.IntegerField(help_text="quantity x milliseconds")
    gpu_milliseconds = serializers.IntegerField(help_text="0 for what is no GPU")
    price = Price(help_text="of a price that floats: what it was at the end, or is now")
    covered_by = serializers.CharField(
        allow_null=True, help_text="what pays for it instead: a reservation, a job, an agreement"
    )
    amount = Amount()


class CreditAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    reason = serializers.CharField()
    amount = serializers.CharField()
    left = serializers.CharField()
    expires_at = serializers.DateTimeField(allow_null=True)


class ComingAnswer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    code = serializers.CharField(help_text="used_up, stop, delete_volumes, or a step of dunning")
    text = serializers.CharField()
    invoice = serializers.CharField(allow_null=True, help_text="the number of the invoice that it is about")


class BalanceAnswer(serializers.Serializer[Any]):
    organization = NamedRef()
    currency = serializers.CharField()
    available = serializers.CharField()
    promo = serializers.CharField()
    cash = serializers.CharField()
    held = serializers.CharField()
    owed = serializers.CharField()
    credit_limit = serializers.CharField(help_text="how much may be owed; 0 for whoever pays ahead")
    credits = CreditAnswer(many=True)
    past_due = serializers.CharField(
        help_text="what of unpaid invoices, and of what a bank took back, is past due and not disputed"
    )
    taken_back = serializers.CharField(
        help_text="what a bank took back of your payments and no invoice asks for; whatever you add pays it"
    )
    written_off = serializers.CharField(
        help_text="what was given up of invoices and is owed no more; nothing new starts until it is paid"
    )
    coming = ComingAnswer(many=True, help_text="what happens next if nobody pays, the soonest first")
    burn_per_hour = serializers.CharField()
    exhausts_at = serializers.DateTimeField(allow_null=True)
    level = serializers.ChoiceField(choices=[level.value for level in Level], help_text="how long it lasts, as a word")
    as_of = serializers.DateTimeField()


class OrganizationAnswer(NamedRef):
    currency = serializers.CharField()


def page_of(answer: type[serializers.Serializer[Any]]) -> type[serializers.Serializer[Any]]:
    """Return the shape of a page of these answers."""
    name = answer.__name__.removesuffix("Answer") + "Page"
    fields = {"data": answer(many=True), "next_cursor": serializers.CharField(allow_null=True)}
    return type(name, (serializers.Serializer,), fields)
