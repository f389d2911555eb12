"""What becomes of invoices that were not paid when they were issued."""

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from billing.models.decisions import Proposal, second_person
from billing.models.invoices import Invoice
from billing.models.payments import Dispute, Payment
from billing.public_ids import PublicIdField


class Collection(models.Model):
    """How far an invoice is from being paid; see `collecting.MOVES`. One for each that left something due.

    What is left is derived from payments (`debts`), never written here. `look_at` is when it has to be looked at next.
    """

    class State(models.TextChoices):
        OPEN = "open", _("open")
        PAST_DUE = "past_due", _("past due")
        PAID = "paid", _("paid")
        UNCOLLECTIBLE = "uncollectible", _("uncollectible")

    invoice = models.OneToOneField(Invoice, models.PROTECT, related_name="collection")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="collections")
    state = models.CharField(max_length=16, choices=State.choices, default=State.OPEN)
    state_since = models.DateTimeField()
    due_at = models.DateTimeField()
    look_at = models.DateTimeField(null=True)
    written_off_micros = models.BigIntegerField(default=0)
    recovered_micros = models.BigIntegerField(default=0, help_text="of what was written off, what came after all")

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=["open", "past_due"], look_at__isnull=False)
                | Q(state__in=["paid", "uncollectible"], look_at=None),
                name="collection_is_looked_at_while_unpaid",
            ),
            models.CheckConstraint(
                condition=Q(recovered_micros__gte=0, written_off_micros__gte=F("recovered_micros")),
                name="collection_recovers_no_more_than_it_wrote_off",
            ),
            models.CheckConstraint(
                condition=~Q(state="uncollectible") | Q(written_off_micros__gt=0),
                name="collection_is_uncollectible_once_written_off",
            ),
        ]
        indexes = [
            models.Index(fields=["look_at"], condition=Q(look_at__isnull=False), name="collection_to_look_at"),
            models.Index(fields=["organization", "state"], name="collection_by_organization"),
        ]

    def __str__(self) -> str:
        return f"{self.invoice}: {self.state}"

    @property
    def lost_micros(self) -> int:
        """What was written off and has not come after all."""
        return self.written_off_micros - self.recovered_micros


class InvoicePayment(models.Model):
    """A transfer, or part of one, that paid one invoice by name. Others pay the oldest debt first; see `debts`.

    Less than nothing where a bank took such a payment back, so that the invoice is owed again.
    """

    invoice = models.ForeignKey(Invoice, models.PROTECT, related_name="named_payments", db_index=False)
    transfer_key = models.CharField(max_length=200, unique=True)
    amount_micros = models.BigIntegerField()
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=~Q(amount_micros=0), name="invoice_payment_is_of_something"),
        ]
        indexes = [models.Index(fields=["invoice"], name="invoice_payment_by_invoice")]

    def __str__(self) -> str:
        return f"{self.amount_micros} micros by {self.transfer_key}"


class DunningStep(models.Model):
    """What is done so many days after an invoice was due (or before, where negative), while something is left of it."""

    class Action(models.TextChoices):
        CHARGE = "charge", _("charge the saved card")
        MAIL = "mail", _("remind by e-mail")
        RESTRICT = "restrict", _("let nothing new start")
        STOP_SPOT = "stop_spot", _("stop what runs on spot")
        STOP_ON_DEMAND = "stop_on_demand", _("stop everything that runs")
        WRITE_OFF = "write_off", _("write it off")

    day_offset = models.SmallIntegerField()
    action = models.CharField(max_length=16, choices=Action.choices)
    is_active = models.BooleanField(default=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["day_offset", "action"], name="dunning_step_once_per_day_and_action"),
            models.CheckConstraint(
                condition=Q(action__in=["charge", "mail"]) | Q(day_offset__gt=0),
                name="dunning_is_harmless_until_an_invoice_is_past_due",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.day_offset:+} days: {self.action}"


class DunningTable(Proposal):
    """Another table of steps that somebody proposes: rows of a day from the due day, and what is done then."""

    public_id = PublicIdField(prefix="dnt")
    steps = models.JSONField()
    reason = models.CharField(max_length=200)

    class Meta:
        constraints = [
            second_person("dunning_table"),
            models.CheckConstraint(condition=~Q(reason=""), name="dunning_table_says_why"),
            models.UniqueConstraint(
                fields=["state"], condition=Q(state="proposed"), name="dunning_table_one_waits_at_a_time"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.public_id} ({self.state})"


class DunningEvent(models.Model):
    """A step that was taken for an invoice, once."""

    class Outcome(models.TextChoices):
        DONE = "done", _("done")
        ORDERED = "ordered", _("charge ordered")
        NO_CARD = "no_card", _("no card saved")
        NO_PROCESSOR = "no_processor", _("no card processor")
        BAD_AMOUNT = "bad_amount", _("amount not payable by card")
        DISPUTED = "disputed", _("its bank took a payment back")

    invoice = models.ForeignKey(Invoice, models.PROTECT, related_name="dunning_events", db_index=False)
    step = models.ForeignKey(DunningStep, models.PROTECT, related_name="events", db_index=False)
    at = models.DateTimeField()
    outcome = models.CharField(max_length=16, choices=Outcome.choices)
    left_micros = models.BigIntegerField(help_text="what was left of the invoice then")
    payment = models.OneToOneField(Payment, models.PROTECT, null=True, related_name="dunning_event")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["invoice", "step"], name="dunning_step_once_per_invoice"),
            models.CheckConstraint(condition=Q(left_micros__gt=0), name="dunning_only_while_something_is_left"),
            models.CheckConstraint(
                condition=Q(outcome="ordered", payment__isnull=False) | (~Q(outcome="ordered") & Q(payment=None)),
                name="dunning_charge_is_a_payment",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.invoice} {self.step}: {self.outcome}"


class TakenDebt(models.Model):
    """What a bank took back of a payment and no invoice asks for, nor will: all that was used was paid otherwise.

    What is left of it is derived from payments, as of an invoice (`debts`). `look_at` is when it has to be looked at
    next, null once it is paid; `sanction` is the last that it brought, by the table of dunning steps.
    """

    dispute = models.OneToOneField(Dispute, models.PROTECT, related_name="debt")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="taken_debts")
    due_micros = models.BigIntegerField()
    older_due_micros = models.BigIntegerField(help_text="what was owed before it, and is paid before it")
    issued_at = models.DateTimeField(help_text="when the bank took it")
    due_at = models.DateTimeField()
    look_at = models.DateTimeField(null=True)
    sanction = models.CharField(max_length=16, choices=DunningStep.Action.choices, blank=True, default="")
    sanction_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(due_micros__gt=0, older_due_micros__gte=0), name="taken_debt_is_of_something"
            ),
            models.CheckConstraint(
                condition=Q(sanction="", sanction_at=None)
                | Q(sanction__in=["restrict", "stop_spot", "stop_on_demand"], sanction_at__gt=F("due_at")),
                name="taken_debt_is_harmless_until_it_is_past_due",
            ),
        ]
        indexes = [
            models.Index(fields=["look_at"], condition=Q(look_at__isnull=False), name="taken_debt_to_look_at"),
            models.Index(
                fields=["organization"], condition=Q(look_at__isnull=False), name="taken_debt_by_organization"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.due_micros} micros of {self.dispute}"
