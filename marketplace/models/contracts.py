"""Paying by outcome: contracts with their immutable versions, who accepted which, and claims with their verdicts."""

from datetime import datetime

import structlog
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from billing import moves
from billing.public_ids import PublicIdField
from provisioning.errors import IllegalMove, StaleInstance

log = structlog.get_logger("marketplace.contracts")

BP = 10_000


class Contract(models.Model):
    """What a seller sells by its outcome: to everybody in the catalogue, or negotiated with one buyer."""

    class Kind(models.TextChoices):
        PER_TASK = "per_task", _("Per finished task")
        PER_UNIT = "per_unit", _("Per unit of output")
        GUARANTEE = "guarantee", _("Guaranteed performance")
        REVENUE_SHARE = "revenue_share", _("Share of revenue")

    public_id = PublicIdField(prefix="ctr")
    seller = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="contracts_sold")
    buyer = models.ForeignKey(
        "marketplace.Organization", models.PROTECT, null=True, related_name="contracts_negotiated",
        help_text="for whom alone it was negotiated; none: it is in the catalogue",
    )  # fmt: skip
    title = models.CharField(max_length=100)
    kind = models.CharField(max_length=13, choices=Kind.choices)
    created_by = models.ForeignKey("marketplace.User", models.PROTECT, related_name="+")
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(buyer=None) | ~Q(buyer=F("seller")), name="contract_is_between_two_organizations"
            ),
            models.CheckConstraint(
                condition=Q(kind__in=["per_task", "per_unit", "guarantee", "revenue_share"]),
                name="contract_kind_is_known",
            ),
        ]

    def __str__(self) -> str:
        return self.title


class Side(models.TextChoices):
    """Who of the two, or the platform between them."""

    SELLER = "seller", _("Seller")
    BUYER = "buyer", _("Customer")
    PLATFORM = "platform", _("Platform")


class ContractVersion(models.Model):
    """Terms that are never changed (trigger): `text` is their canonical form, of which both sides know the SHA-256.

    Drafts are not changed either: an edit is the next number.
    """

    class State(models.TextChoices):
        DRAFT = "draft", _("Draft")
        SUBMITTED = "submitted", _("Waiting for approval")
        OFFERED = "offered", _("Offered")
        WITHDRAWN = "withdrawn", _("Withdrawn")

    MOVES: dict[str, tuple[str, ...]] = {
        State.DRAFT: (State.SUBMITTED, State.OFFERED, State.WITHDRAWN),
        State.SUBMITTED: (State.OFFERED, State.WITHDRAWN),
        State.OFFERED: (State.WITHDRAWN,),
        State.WITHDRAWN: (),
    }

    public_id = PublicIdField(prefix="ctv")
    contract = models.ForeignKey(Contract, models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    terms = models.JSONField()
    text = models.TextField(help_text="the terms as canonical JSON: what is hashed")
    sha256 = models.CharField(max_length=64)
    state = models.CharField(max_length=9, choices=State.choices, default=State.DRAFT)
    proposed_by = models.CharField(max_length=8, choices=Side.choices, default=Side.SELLER)
    created_by = models.ForeignKey("marketplace.User", models.PROTECT, related_name="+")
    created_at = models.DateTimeField()
    offered_at = models.DateTimeField(null=True)
    withdrawn_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["contract", "number"], name="contract_version_numbers_are_given_once"),
            models.CheckConstraint(
                condition=Q(state__in=["draft", "submitted", "offered", "withdrawn"]),
                name="contract_version_state_is_known",
            ),
        ]
        indexes = [models.Index(fields=["-id"], name="contract_version_offered", condition=Q(state="offered"))]

    def __str__(self) -> str:
        return f"{self.contract} v{self.number}"


class Acceptance(models.Model):
    """That one side agreed to a version: who, when, and to the SHA-256 of what text. Never changed (trigger).

    `check_image` and `check_command` are what the customer lets judge each
    outcome, where the terms leave the verifying command to the customer.
    """

    public_id = PublicIdField(prefix="cta")
    version = models.ForeignKey(ContractVersion, models.PROTECT, related_name="acceptances")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="contract_acceptances")
    side = models.CharField(max_length=8, choices=Side.choices)
    sha256 = models.CharField(max_length=64)
    check_image = models.CharField(max_length=500, blank=True)
    check_command = models.JSONField(default=list)
    accepted_by = models.ForeignKey("marketplace.User", models.PROTECT, related_name="+")
    accepted_by_name = models.CharField(max_length=254)
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["version", "organization"], name="contract_version_is_accepted_once"),
            models.CheckConstraint(condition=Q(side__in=["seller", "buyer"]), name="acceptance_is_of_one_of_two_sides"),
        ]

    def __str__(self) -> str:
        return f"{self.organization} accepted {self.version}"

    @property
    def ended_at(self) -> datetime | None:
        """When its customer ended it; None: it holds. Read with `end`, or by a query."""
        return self.end.at if hasattr(self, "end") else None


class AgreementEnd(models.Model):
    """That a customer ended what they had agreed to: who, and when. Never changed (trigger).

    What was begun goes on by its terms.
    """

    acceptance = models.OneToOneField(Acceptance, models.PROTECT, related_name="end")
    ended_by = models.ForeignKey("marketplace.User", models.PROTECT, related_name="+")
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.acceptance}, until {self.at}"


class SellerLimit(models.Model):
    """What work under all contracts of a seller may cost the platform unpaid, in a currency; null: what is ordinary.

    Whoever starts such work locks it.
    """

    seller = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="seller_limits")
    currency = models.CharField(max_length=3)
    unpaid_micros = models.BigIntegerField(null=True)
    changed_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["seller", "currency"], name="seller_limit_once_per_currency"),
            models.CheckConstraint(
                condition=Q(unpaid_micros=None) | Q(unpaid_micros__gte=0), name="seller_limit_is_not_negative"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.seller}: {self.unpaid_micros} {self.currency}"


class FloorLook(models.Model):
    """When the floor of an acceptance is looked at next: what ended before was looked at, charged or not."""

    acceptance = models.OneToOneField(Acceptance, models.CASCADE, related_name="floor_look")
    due_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"{self.acceptance}: {self.due_at}"


class ClaimState(models.TextChoices):
    """Where a claim stands; what may follow is in `CLAIM_MOVES`, and nothing once it is closed but a reversal."""

    CLAIMED = "claimed", _("Being verified")
    VERIFIED = "verified", _("Verified")
    FAILED = "failed", _("Did not pass")
    ACCEPTED = "accepted", _("Accepted")
    AUTO_ACCEPTED = "auto_accepted", _("Accepted by silence")
    REJECTED = "rejected", _("Rejected")
    DISPUTED = "disputed", _("Disputed")
    UPHELD = "upheld", _("Upheld")
    PARTIAL = "partial", _("Upheld in part")
    SETTLED = "settled", _("Settled")
    REVERSED = "reversed", _("Reversed")
    VOIDED = "voided", _("Voided")


_S = ClaimState
CLAIM_MOVES: dict[str, tuple[str, ...]] = {
    _S.CLAIMED: (_S.VERIFIED, _S.FAILED, _S.VOIDED),
    # A failed one may be tried again, or its seller may contest the verdict.
    _S.FAILED: (_S.CLAIMED, _S.DISPUTED, _S.VOIDED),
    _S.VERIFIED: (_S.ACCEPTED, _S.AUTO_ACCEPTED, _S.REJECTED, _S.DISPUTED, _S.VOIDED),
    _S.REJECTED: (_S.DISPUTED, _S.VOIDED),
    _S.DISPUTED: (_S.UPHELD, _S.REJECTED, _S.PARTIAL, _S.VOIDED),
    _S.ACCEPTED: (_S.SETTLED, _S.VOIDED),
    # Who was silent may still contest it, until the dispute window ends and it is paid.
    _S.AUTO_ACCEPTED: (_S.SETTLED, _S.DISPUTED, _S.VOIDED),
    _S.UPHELD: (_S.SETTLED, _S.VOIDED),
    _S.PARTIAL: (_S.SETTLED, _S.VOIDED),
    _S.SETTLED: (_S.REVERSED,),
    _S.REVERSED: (),
    _S.VOIDED: (),
}
TO_SETTLE = (_S.ACCEPTED, _S.AUTO_ACCEPTED, _S.UPHELD, _S.PARTIAL)


class Claim(models.Model):
    """One billable result: what is claimed under which version, on what evidence, and how that ended.

    `amount_micros` is its price by the terms, `due_bps` the part of it that is
    to be paid. It is closed when its money is resolved: posted, or given back.
    """

    State = ClaimState

    public_id = PublicIdField(prefix="clm")
    version = models.ForeignKey(ContractVersion, models.PROTECT, related_name="claims")
    contract = models.ForeignKey(Contract, models.PROTECT, related_name="claims")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="claims")
    project = models.ForeignKey("marketplace.Project", models.PROTECT, related_name="claims")
    task = models.OneToOneField("marketplace.Task", models.PROTECT, null=True, related_name="claim")
    escrow_id = models.CharField(max_length=40, help_text="the resource whose escrow pays: a job, or the claim itself")
    scope = models.CharField(max_length=40, blank=True, help_text="within which its subject is billed once")
    subject_key = models.CharField(max_length=200)
    units = models.BigIntegerField(default=1)
    price_bps = models.PositiveIntegerField(default=BP, help_text="what being late leaves of the price")
    amount_micros = models.BigIntegerField()
    most_micros = models.BigIntegerField(help_text="the most that this subject can cost")
    due_bps = models.PositiveIntegerField(default=BP)
    paid_micros = models.BigIntegerField(default=0)
    reversed_micros = models.BigIntegerField(default=0)
    state = models.CharField(max_length=13, choices=ClaimState.choices, default=ClaimState.CLAIMED)
    state_since = models.DateTimeField()
    run = models.PositiveIntegerField(default=1, help_text="how often it was claimed: 1, and 1 more for each retry")
    evidence = models.JSONField(default=dict)
    evidence_sha256 = models.CharField(max_length=64)
    message = models.TextField(blank=True)
    claimed_at = models.DateTimeField()
    due_at = models.DateTimeField(null=True, help_text="when a rule of the terms acts next; none: nothing is open")
    settled_at = models.DateTimeField(null=True)
    clawback_until = models.DateTimeField(null=True)
    closed_at = models.DateTimeField(null=True, help_text="when its money was posted or given back")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["contract", "organization", "scope", "subject_key"], name="claim_once_per_subject"
            ),
            models.CheckConstraint(condition=Q(state__in=ClaimState.values), name="claim_state_is_known"),
            models.CheckConstraint(
                condition=Q(amount_micros__gte=0, amount_micros__lte=F("most_micros"), units__gte=0),
                name="claim_asks_no_more_than_was_quoted",
            ),
            models.CheckConstraint(
                condition=Q(due_bps__lte=BP, price_bps__lte=BP, paid_micros__gte=0)
                & Q(paid_micros__lte=F("amount_micros")),
                name="claim_is_paid_no_more_than_its_amount",
            ),
            models.CheckConstraint(
                condition=Q(reversed_micros__gte=0, reversed_micros__lte=F("paid_micros")),
                name="claim_gives_back_no_more_than_was_paid",
            ),
            models.CheckConstraint(
                condition=Q(paid_micros=0) | Q(state__in=["settled", "reversed"]), name="claim_is_paid_when_settled"
            ),
            models.CheckConstraint(
                condition=Q(state__in=["settled", "reversed", "voided"], closed_at__isnull=False)
                | Q(state__in=["failed", "rejected"])
                | Q(closed_at=None) & ~Q(state__in=["settled", "reversed", "voided"]),
                name="claim_is_closed_with_its_money",
            ),
            # No claim is forgotten: whatever is open is found by the sweep.
            models.CheckConstraint(
                condition=Q(due_at__isnull=False) | Q(closed_at__isnull=False), name="claim_that_is_open_falls_due"
            ),
        ]
        indexes = [
            models.Index(fields=["due_at"], name="claim_that_falls_due", condition=Q(due_at__isnull=False)),
            models.Index(fields=["organization", "-id"], name="claim_newest_first"),
            models.Index(fields=["escrow_id"], name="claim_open_by_what_pays", condition=Q(closed_at=None)),
        ]

    def __str__(self) -> str:
        return self.public_id

    @property
    def is_open(self) -> bool:
        """Whether its money is still set aside."""
        return self.closed_at is None

    @property
    def paid_bps(self) -> int:
        """What is to be paid of its price: what being late and what a decision leave of it."""
        return self.price_bps * self.due_bps // BP

    @property
    def kept_micros(self) -> int:
        """What was paid and did not go back."""
        return self.paid_micros - self.reversed_micros

    def move_to(self, state: str, *, at: datetime, message: str = "", by: str = "", **changes: object) -> None:
        """Change state if the map allows it, and write down that it happened; call it within a transaction.

        Raises IllegalMove when the map forbids it and StaleInstance when somebody else moved first.
        """
        old = self.state
        if state not in CLAIM_MOVES[old] or (self.closed_at is not None and state != ClaimState.REVERSED):
            raise IllegalMove(f"{self.public_id}: {old} cannot become {state}")
        facts = {**changes, "state_since": at, "message": message}
        if not moves.move(self, state, {old: (state,)}, **facts):
            raise StaleInstance(f"{self.public_id} is no longer {old}")
        for name, value in {**facts, "state": state}.items():
            setattr(self, name, value)
        ClaimEvent.objects.create(claim=self, at=at, old_state=old, new_state=state, message=message, by_name=by)
        log.info("moved", claim=self.public_id, old=old, new=state)

    def note(self, message: str, *, at: datetime, by: str = "") -> None:
        """Write into the timeline of a claim that stays as it is."""
        ClaimEvent.objects.create(
            claim=self, at=at, old_state=self.state, new_state=self.state, message=message, by_name=by
        )


class ClaimEvent(models.Model):
    """One move of a claim, or a note on it, which moves nothing."""

    claim = models.ForeignKey(Claim, models.CASCADE, related_name="events")
    at = models.DateTimeField()
    old_state = models.CharField(max_length=13, choices=ClaimState.choices, blank=True)
    new_state = models.CharField(max_length=13, choices=ClaimState.choices)
    message = models.TextField(blank=True)
    by_name = models.CharField(max_length=254, blank=True)

    def __str__(self) -> str:
        return f"{self.claim}: {self.old_state} -> {self.new_state}"


class Verdict(models.Model):
    """What one verifier said of one run of a claim. Never changed (trigger), and said once (unique)."""

    class Verifier(models.TextChoices):
        OUTPUTS = "outputs", _("Exit code and outputs")
        COMMAND = "command", _("The customer's command on another host")
        RERUN = "rerun", _("A second run, compared")
        CUSTOMER = "customer", _("The customer")
        THIRD_PARTY = "third_party", _("A third party")
        SILENCE = "silence", _("The rule of silence")

    class Result(models.TextChoices):
        PASS = "pass", _("Passed")
        FAIL = "fail", _("Did not pass")

    public_id = PublicIdField(prefix="vrd")
    claim = models.ForeignKey(Claim, models.PROTECT, related_name="verdicts")
    run = models.PositiveIntegerField(default=1)
    verifier = models.CharField(max_length=11, choices=Verifier.choices)
    verifier_version = models.CharField(max_length=80, help_text="which edition of it: an image's digest, a key's id")
    result = models.CharField(max_length=4, choices=Result.choices)
    detail = models.TextField(blank=True)
    inputs = models.JSONField(default=dict, help_text="digests of what it looked at")
    by_name = models.CharField(max_length=254, blank=True)
    signature = models.CharField(max_length=128, blank=True, help_text="Ed25519, hexadecimal, of a third party")
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["claim", "run", "verifier", "verifier_version"], name="verdict_once_per_verifier_and_run"
            ),
            models.CheckConstraint(condition=Q(result__in=["pass", "fail"]), name="verdict_is_one_of_two"),
        ]

    def __str__(self) -> str:
        return f"{self.verifier} of {self.claim}: {self.result}"


class VerifierRun(models.Model):
    """One try of a verifier that runs on a node: which instance, and how it ended."""

    class Result(models.TextChoices):
        RUNNING = "running", _("Running")
        PASS = "pass", _("Passed")
        FAIL = "fail", _("Did not pass")
        CRASHED = "crashed", _("Crashed")
        TIMED_OUT = "timed_out", _("Gave no answer in time")
        LOST = "lost", _("Its node failed")

    claim = models.ForeignKey(Claim, models.PROTECT, related_name="verifier_runs")
    run = models.PositiveIntegerField()
    number = models.PositiveIntegerField()
    instance = models.OneToOneField("provisioning.Instance", models.PROTECT, related_name="+")
    result = models.CharField(max_length=9, choices=Result.choices, default=Result.RUNNING)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["claim", "run", "number"], name="verifier_tries_are_numbered_once"),
            models.UniqueConstraint(
                fields=["claim"], condition=Q(result="running"), name="verifier_runs_once_at_a_time"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.claim} run {self.run}, try {self.number}"


class ClaimDispute(models.Model):
    """That one side contests how a claim stands: one open at a time, decided by who the terms say, or by their rule."""

    class State(models.TextChoices):
        OPEN = "open", _("Open")
        UPHELD = "upheld", _("To be paid")
        PARTIAL = "partial", _("To be paid in part")
        REJECTED = "rejected", _("Not to be paid")
        WITHDRAWN = "withdrawn", _("Withdrawn")

    class Reason(models.TextChoices):
        WRONG = "wrong_result", _("The result is wrong")
        INCOMPLETE = "incomplete", _("The result is incomplete")
        LATE = "late", _("It came too late")
        VERIFIER = "verifier", _("The verifier was wrong")
        DUPLICATE = "duplicate", _("It was paid already")
        OTHER = "other", _("Something else")

    MOVES: dict[str, tuple[str, ...]] = {
        State.OPEN: (State.UPHELD, State.PARTIAL, State.REJECTED, State.WITHDRAWN),
        State.UPHELD: (),
        State.PARTIAL: (),
        State.REJECTED: (),
        State.WITHDRAWN: (),
    }

    public_id = PublicIdField(prefix="cdp")
    claim = models.ForeignKey(Claim, models.PROTECT, related_name="disputes")
    opened_by = models.CharField(max_length=8, choices=Side.choices)
    opened_by_name = models.CharField(max_length=254)
    claim_state = models.CharField(max_length=13, choices=ClaimState.choices, help_text="in which it was contested")
    reason = models.CharField(max_length=12, choices=Reason.choices)
    text = models.TextField()
    state = models.CharField(max_length=9, choices=State.choices, default=State.OPEN)
    opened_at = models.DateTimeField()
    decide_by = models.DateTimeField()
    due_bps = models.PositiveIntegerField(null=True, help_text="what was decided to be paid of the claim")
    decided_by_name = models.CharField(max_length=254, blank=True)
    decided_at = models.DateTimeField(null=True)
    note = models.TextField(blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["claim"], condition=Q(state="open"), name="claim_has_one_open_dispute"),
            models.CheckConstraint(
                condition=Q(state="open", decided_at=None) | ~Q(state="open") & Q(decided_at__isnull=False),
                name="claim_dispute_is_decided_at_a_moment",
            ),
            models.CheckConstraint(
                condition=Q(due_bps=None) | Q(due_bps__lte=BP), name="claim_dispute_pays_at_most_all"
            ),
        ]
        indexes = [models.Index(fields=["decide_by"], name="claim_dispute_to_decide", condition=Q(state="open"))]

    def __str__(self) -> str:
        return f"{self.public_id} of {self.claim}: {self.state}"


class DisputeNote(models.Model):
    """What one side says in a dispute; never changed (trigger)."""

    dispute = models.ForeignKey(ClaimDispute, models.PROTECT, related_name="notes")
    side = models.CharField(max_length=8, choices=Side.choices)
    by_name = models.CharField(max_length=254)
    text = models.TextField()
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.side} on {self.dispute}"
