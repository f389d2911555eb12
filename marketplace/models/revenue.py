"""Shares of revenue: what was reported for each period, and what was charged for it."""

from datetime import datetime

import structlog
from django.db import models, transaction
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from billing import moves
from billing.public_ids import PublicIdField
from marketplace.models.contracts import ContractVersion
from provisioning.errors import IllegalMove, StaleInstance

log = structlog.get_logger("marketplace.revenue")


class PeriodState(models.TextChoices):
    """Where a period stands; what may follow is in `PERIOD_MOVES`."""

    OPEN = "open", _("Open for statements")
    ESTIMATED = "estimated", _("Charged by estimate")
    CLOSED = "closed", _("Closed")


PERIOD_MOVES: dict[str, tuple[str, ...]] = {
    PeriodState.OPEN: (PeriodState.ESTIMATED, PeriodState.CLOSED),
    PeriodState.ESTIMATED: (PeriodState.CLOSED,),
    PeriodState.CLOSED: (),
}


class RevenuePeriod(models.Model):
    """A day or month (UTC) of a share of revenue that an organization agreed to.

    Statements are due by `due_at`. What was stated by then is charged and the
    period closed; where nothing was, an estimate is charged, and a statement
    still corrects it until `final_at`.
    """

    class Basis(models.TextChoices):
        NONE = "", ""
        REPORTED = "reported", _("The customer's statement")
        LAST_STATEMENT = "last_statement", _("Estimate: the last statement before")
        MINIMUM = "minimum", _("Estimate: the minimum")
        METERED_COST = "metered_cost", _("Estimate: the metered cost")

    State = PeriodState

    public_id = PublicIdField(prefix="rvp")
    version = models.ForeignKey(ContractVersion, models.PROTECT, related_name="revenue_periods")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="revenue_periods")
    currency = models.CharField(max_length=3)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    due_at = models.DateTimeField()
    final_at = models.DateTimeField()
    state = models.CharField(max_length=9, choices=PeriodState.choices, default=PeriodState.OPEN)
    basis = models.CharField(max_length=14, choices=Basis.choices, blank=True)
    revenue_micros = models.BigIntegerField(null=True, help_text="by which it was charged last")
    metered_micros = models.BigIntegerField(null=True, help_text="what its use would have cost by the list")
    metered_lines = models.JSONField(default=list, help_text="of it, span by span, as it was charged")
    charged_micros = models.BigIntegerField(default=0)
    closed_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["version", "organization", "starts_at"], name="revenue_period_once"),
            models.CheckConstraint(
                condition=Q(starts_at__lt=F("ends_at"), ends_at__lt=F("due_at"), due_at__lt=F("final_at")),
                name="revenue_period_runs_forward",
            ),
            models.CheckConstraint(condition=Q(state__in=PeriodState.values), name="revenue_period_state_is_known"),
            models.CheckConstraint(
                condition=Q(state="closed", closed_at__isnull=False) | ~Q(state="closed") & Q(closed_at=None),
                name="revenue_period_says_when_it_closed",
            ),
            models.CheckConstraint(condition=Q(charged_micros__gte=0), name="revenue_period_charges_forward"),
        ]
        indexes = [
            models.Index(fields=["organization", "-id"], name="revenue_period_newest_first"),
            models.Index(fields=["due_at"], condition=~Q(state="closed"), name="revenue_period_not_closed"),
        ]

    def __str__(self) -> str:
        return f"{self.version} {self.label}"

    @property
    def label(self) -> str:
        """What people call it: `2026-11`, or `2026-11-26` where it is a day."""
        is_month = self.starts_at.day == 1 and (self.ends_at - self.starts_at).days > 1
        return f"{self.starts_at:%Y-%m}" if is_month else f"{self.starts_at:%Y-%m-%d}"

    @transaction.atomic
    def move_to(self, state: str, *, at: datetime, message: str, **facts: object) -> None:
        """Change state if the map allows it, and write down that it happened.

        Raises IllegalMove when the map forbids it and StaleInstance when somebody else moved first.
        """
        old = self.state
        if state not in PERIOD_MOVES[old]:
            raise IllegalMove(f"{self.public_id}: {old} cannot become {state}")
        if not moves.move(self, state, {old: (state,)}, **facts):
            raise StaleInstance(f"{self.public_id} is no longer {old}")
        for name, value in {**facts, "state": state}.items():
            setattr(self, name, value)
        RevenuePeriodEvent.objects.create(period=self, at=at, old_state=old, new_state=state, message=message)
        log.info("moved", period=self.public_id, old=old, new=state)


class RevenuePeriodEvent(models.Model):
    """One move of a period, and why."""

    period = models.ForeignKey(RevenuePeriod, models.CASCADE, related_name="events")
    at = models.DateTimeField()
    old_state = models.CharField(max_length=9, choices=PeriodState.choices)
    new_state = models.CharField(max_length=9, choices=PeriodState.choices)
    message = models.CharField(max_length=200)

    def __str__(self) -> str:
        return f"{self.period}: {self.old_state} -> {self.new_state}"


class RevenueStatement(models.Model):
    """What a customer says that it earned in a period. Never changed (trigger): a correction is the next number.

    `lines` are rows of a label and micros, which add up; `sha256` is of their canonical text, and who sent it with
    which token stands beside it.
    """

    class Source(models.TextChoices):
        API = "api", _("API")
        CSV = "csv", _("CSV file")
        PORTAL = "portal", _("Portal")

    public_id = PublicIdField(prefix="rvs")
    period = models.ForeignKey(RevenuePeriod, models.PROTECT, related_name="statements")
    number = models.PositiveIntegerField()
    revenue_micros = models.BigIntegerField()
    lines = models.JSONField(default=list)
    sha256 = models.CharField(max_length=64)
    source = models.CharField(max_length=6, choices=Source.choices)
    by = models.ForeignKey("marketplace.User", models.PROTECT, related_name="+")
    by_name = models.CharField(max_length=254)
    token = models.CharField(max_length=32, blank=True, help_text="the id of the API token that signed it")
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["period", "number"], name="revenue_statement_number_once"),
            models.CheckConstraint(condition=Q(revenue_micros__gte=0), name="revenue_statement_is_not_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.period} no. {self.number}: {self.revenue_micros} micros"
