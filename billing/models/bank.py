"""Money by bank, which people record by hand; and what customers say is wrong with an invoice."""

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from billing.models.decisions import Proposal, second_person
from billing.models.invoices import CreditProposal, Invoice, InvoiceLine
from billing.public_ids import PublicIdField


class BankTransfer(Proposal):
    """A line of our bank's statement: one person records it, another approves, and only then money moves.

    `bank_reference` is the bank's own number of the line, so that none counts twice.
    """

    class Direction(models.TextChoices):
        IN = "in", _("came in")
        OUT = "out", _("goes back")

    public_id = PublicIdField(prefix="btr")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="bank_transfers")
    direction = models.CharField(max_length=3, choices=Direction.choices)
    amount_micros = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    bank_reference = models.CharField(max_length=64)
    value_on = models.DateField()
    invoice = models.ForeignKey(Invoice, models.PROTECT, null=True, blank=True, related_name="bank_transfers")
    note = models.CharField(max_length=200, blank=True)

    class Meta:
        constraints = [
            second_person("bank_transfer"),
            models.CheckConstraint(condition=Q(amount_micros__gt=0), name="bank_transfer_moves_something"),
            models.CheckConstraint(condition=~Q(bank_reference=""), name="bank_transfer_stands_on_a_statement"),
            models.CheckConstraint(
                condition=Q(direction="in") | Q(invoice=None), name="bank_transfer_that_goes_back_pays_no_invoice"
            ),
            models.UniqueConstraint(
                fields=["bank_reference"],
                condition=~Q(state="declined"),
                name="bank_transfer_once_per_line_of_the_bank",
            ),
        ]
        indexes = [models.Index(fields=["organization", "-id"], name="bank_transfer_newest_first")]

    def __str__(self) -> str:
        return f"{self.bank_reference}: {self.amount_micros} micros {self.direction} ({self.state})"


class InvoiceDispute(models.Model):
    """A customer says that part of an invoice is wrong. While it is open nobody asks for that part; see `disputes`.

    `net_micros` is before tax, `gross_micros` with it. Upheld, it is a proposed credit, which needs a second person.
    """

    class State(models.TextChoices):
        OPEN = "open", _("open")
        UPHELD = "upheld", _("upheld")
        REJECTED = "rejected", _("rejected")
        WITHDRAWN = "withdrawn", _("withdrawn")

    public_id = PublicIdField(prefix="idp")
    key = models.UUIDField(unique=True)
    invoice = models.ForeignKey(Invoice, models.PROTECT, related_name="disputes")
    line = models.ForeignKey(InvoiceLine, models.PROTECT, null=True, blank=True, related_name="disputes")
    net_micros = models.BigIntegerField()
    gross_micros = models.BigIntegerField()
    asked_micros = models.BigIntegerField(null=True, help_text="before tax, as it was ordered; null: all of it")
    reason = models.CharField(max_length=500)
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN)
    opened_by = models.ForeignKey("marketplace.User", models.PROTECT, related_name="+")
    opened_at = models.DateTimeField()
    decided_by = models.ForeignKey("marketplace.User", models.PROTECT, null=True, related_name="+")
    decided_at = models.DateTimeField(null=True)
    answer = models.CharField(max_length=500, blank=True)
    proposal = models.OneToOneField(CreditProposal, models.PROTECT, null=True, related_name="dispute")

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(net_micros__gt=0, gross_micros__gte=F("net_micros")), name="dispute_is_about_something"
            ),
            models.CheckConstraint(
                condition=Q(state="open", decided_by=None, proposal=None)
                | Q(state="upheld", decided_by__isnull=False, proposal__isnull=False)
                | (Q(state="rejected", decided_by__isnull=False, proposal=None) & ~Q(answer=""))
                | Q(state="withdrawn", decided_by__isnull=False, proposal=None),
                name="dispute_is_open_or_decided_with_its_reason",
            ),
            models.UniqueConstraint(
                fields=["invoice", "line"], condition=Q(state="open"), name="dispute_open_once_per_line",
                nulls_distinct=False,
            ),
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.net_micros} micros of {self.invoice} ({self.state})"
