"""What was asked for, once and for all: invoices, credit notes, and who sells to whom."""

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from billing.models.usage import PriceVersion, Unit, UsageSpan
from billing.public_ids import PublicIdField


class BillingDetails(models.Model):
    """Who an organization is on paper. Invoices keep a copy as it was at their issue.

    `tax_id` is in the form of `tax_ids.checked` for `country`, or empty; for Japan it is the registration number of
    a qualified invoice issuer, `T` and thirteen digits.
    """

    class Language(models.TextChoices):
        ENGLISH = "en", _("English")
        JAPANESE = "ja", _("Japanese")

    organization = models.OneToOneField("marketplace.Organization", models.PROTECT, related_name="billing_details")
    legal_name = models.CharField(max_length=200)
    address = models.CharField(max_length=400, help_text="lines of an address, without the country")
    country = models.CharField(max_length=2)
    tax_id = models.CharField(max_length=32, blank=True)
    email = models.EmailField(blank=True, help_text="where invoices go; empty: to owners and billing members")
    language = models.CharField(max_length=2, choices=Language.choices, default=Language.ENGLISH)
    changed_at = models.DateTimeField(db_default=Now())

    class Meta:
        verbose_name_plural = "billing details"
        constraints = [
            models.CheckConstraint(condition=Q(country__regex="^[A-Z]{2}$"), name="billing_country_is_an_iso_code"),
            models.CheckConstraint(condition=~Q(legal_name="") & ~Q(address=""), name="billing_details_say_who"),
        ]

    def __str__(self) -> str:
        return f"{self.legal_name} ({self.country})"


class InvoiceSeries(models.Model):
    """Whose invoices are numbered how. `next_number` grows in the transaction that issues, so no number is ever lost.

    A trigger refuses any other change: a number that was given stays given.
    """

    class Kind(models.TextChoices):
        INVOICE = "invoice", _("Invoice")
        CREDIT_NOTE = "credit_note", _("Credit note")

    seller = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="invoice_series")
    kind = models.CharField(max_length=12, choices=Kind.choices)
    prefix = models.CharField(max_length=12)
    next_number = models.BigIntegerField(default=1)

    class Meta:
        verbose_name_plural = "invoice series"
        constraints = [
            models.UniqueConstraint(fields=["prefix"], name="invoice_prefix_once"),
            models.UniqueConstraint(fields=["kind"], name="invoice_series_one_per_kind"),
            models.CheckConstraint(condition=Q(next_number__gte=1), name="invoice_numbers_begin_at_one"),
        ]

    def __str__(self) -> str:
        return f"{self.prefix}{self.next_number:06}"


class Invoice(models.Model):
    """An invoice, or a credit note that takes part of one back. Written once: a trigger refuses every change.

    All amounts are micros that are whole minor units of the currency, except `exact_micros` (what the ledger took
    for the use) and `exact_promo_micros` (how much of that promotional credit paid). A credit note's amounts are
    positive: they are what is given back.

        subtotal = sum of lines     net = subtotal - promo     total = net + tax     due = total - paid

    `promo` is below zero where a rebate returned credit that an earlier invoice had counted.
    """

    class Treatment(models.TextChoices):
        DOMESTIC = "domestic", _("Taxed in the seller's country")
        DESTINATION = "destination", _("Taxed in the customer's country")
        REVERSE_CHARGE = "reverse_charge", _("Reverse charge: the customer accounts for the tax")
        OUTSIDE = "outside", _("Outside of the scope of the seller's tax")

    public_id = PublicIdField(prefix="ivc")
    number = models.CharField(max_length=32, unique=True)
    series = models.ForeignKey(InvoiceSeries, models.PROTECT, related_name="invoices", db_index=False)
    sequence = models.BigIntegerField()
    kind = models.CharField(max_length=12, choices=InvoiceSeries.Kind.choices)
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="invoices")
    credited = models.ForeignKey("self", models.PROTECT, null=True, blank=True, related_name="credit_notes")
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    issued_at = models.DateTimeField()
    currency = models.CharField(max_length=3)
    language = models.CharField(max_length=2)
    seller = models.JSONField(help_text="name, address, country and tax_id as they were")
    customer = models.JSONField(help_text="name, address, country and tax_id as they were")
    exact_micros = models.BigIntegerField()
    exact_promo_micros = models.BigIntegerField()
    subtotal_micros = models.BigIntegerField()
    promo_micros = models.BigIntegerField()
    net_micros = models.BigIntegerField()
    tax_treatment = models.CharField(max_length=16, choices=Treatment.choices)
    tax_country = models.CharField(max_length=2, blank=True)
    tax_name = models.CharField(max_length=40, blank=True)
    tax_rate_bps = models.PositiveIntegerField()
    tax_micros = models.BigIntegerField()
    total_micros = models.BigIntegerField()
    paid_micros = models.BigIntegerField(help_text="already paid from the balance at its issue")
    due_micros = models.BigIntegerField()
    older_due_micros = models.BigIntegerField(default=0, help_text="what was owed for earlier invoices at its issue")
    reason = models.CharField(max_length=200, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["series", "sequence"], name="invoice_number_once_per_series"),
            models.UniqueConstraint(
                fields=["organization", "period_end"], condition=Q(kind="invoice"), name="invoice_once_per_period"
            ),
            models.CheckConstraint(
                condition=Q(
                    net_micros=F("subtotal_micros") - F("promo_micros"),
                    total_micros=F("net_micros") + F("tax_micros"),
                    due_micros=F("total_micros") - F("paid_micros"),
                ),
                name="invoice_adds_up",
            ),
            models.CheckConstraint(
                condition=Q(net_micros__gte=0, tax_micros__gte=0, due_micros__gte=0, older_due_micros__gte=0),
                name="invoice_asks_for_nothing_negative",
            ),
            models.CheckConstraint(
                condition=Q(kind="invoice", credited=None, reason="")
                | (Q(kind="credit_note", credited__isnull=False, net_micros__gt=0, due_micros=0) & ~Q(reason="")),
                name="credit_note_says_what_and_why",
            ),
            models.CheckConstraint(condition=Q(period_start__lte=F("period_end")), name="invoice_period_runs_forward"),
            # Not checked for the invoices of 0.00 from before there was this rule.
            models.CheckConstraint(condition=Q(net_micros__gt=0), name="invoice_asks_for_something"),
        ]
        indexes = [models.Index(fields=["organization", "-id"], name="invoice_newest_first")]

    def __str__(self) -> str:
        return self.number

    @property
    def is_credit_note(self) -> bool:
        return self.kind == InvoiceSeries.Kind.CREDIT_NOTE

    @property
    def promo_off_micros(self) -> int:
        """What promotional credit adds to the sum of the lines: below zero where it paid."""
        return -self.promo_micros


class InvoiceWait(models.Model):
    """Whose use and payments asked for nothing through a moment: the next invoice that asks for something has them."""

    organization = models.OneToOneField("marketplace.Organization", models.PROTECT, related_name="+")
    through = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.organization_id} through {self.through:%Y-%m-%d}"


class InvoiceLine(models.Model):
    """One resource at one price in one market: `exact_micros` is what its spans cost, `amount_micros` that rounded."""

    class Meta:
        constraints = [models.UniqueConstraint(fields=["invoice", "key"], name="invoice_line_once_per_key")]

    invoice = models.ForeignKey(Invoice, models.PROTECT, related_name="lines", db_index=False)
    key = models.CharField(max_length=240)
    resource_id = models.CharField(max_length=64, blank=True)
    resource_name = models.CharField(max_length=200)
    project = models.CharField(max_length=32, blank=True)
    meter = models.CharField(max_length=16, choices=UsageSpan.Meter.choices, blank=True)
    unit = models.CharField(max_length=8, choices=Unit.choices, blank=True)
    market = models.CharField(max_length=16, blank=True)
    is_late = models.BooleanField(default=False, help_text="use of an earlier period that became known afterwards")
    price_version = models.ForeignKey(PriceVersion, models.PROTECT, null=True, related_name="+", db_index=False)
    micros_per_unit_hour = models.BigIntegerField(null=True, help_text="null where the price floats")
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    unit_milliseconds = models.BigIntegerField()
    exact_micros = models.BigIntegerField()
    amount_micros = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.key}: {self.amount_micros} micros"


class InvoiceItem(models.Model):
    """The part of a span that a line charges: from what was invoiced before up to `ends_at`.

    It is negative where the span turned out to have ended before what was invoiced already; then `ends_at` lies
    before `starts_at`. The items of a span add up to what it costs through the last of them.
    """

    class Meta:
        constraints = [models.UniqueConstraint(fields=["span", "line"], name="invoice_item_once_per_line")]

    line = models.ForeignKey(InvoiceLine, models.PROTECT, related_name="items")
    span = models.ForeignKey(UsageSpan, models.PROTECT, related_name="invoice_items", db_index=False)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    unit_milliseconds = models.BigIntegerField()
    amount_micros = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.amount_micros} micros until {self.ends_at:%Y-%m-%d %H:%M:%S}"


class CreditProposal(models.Model):
    """Somebody wants to take back part of an invoice; somebody else decides."""

    class State(models.TextChoices):
        PROPOSED = "proposed", _("proposed")
        ISSUED = "issued", _("issued")
        DECLINED = "declined", _("declined")

    public_id = PublicIdField(prefix="cpr")
    invoice = models.ForeignKey(Invoice, models.PROTECT, related_name="credit_proposals")
    net_micros = models.BigIntegerField()
    reason = models.CharField(max_length=200)
    state = models.CharField(max_length=8, choices=State.choices, default=State.PROPOSED)
    key = models.UUIDField(unique=True)
    proposed_by = models.ForeignKey("marketplace.User", models.PROTECT, related_name="+")
    proposed_at = models.DateTimeField()
    decided_by = models.ForeignKey("marketplace.User", models.PROTECT, null=True, related_name="+")
    decided_at = models.DateTimeField(null=True)
    credit_note = models.OneToOneField(Invoice, models.PROTECT, null=True, related_name="proposal")

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(net_micros__gt=0), name="credit_proposal_gives_something"),
            models.CheckConstraint(
                condition=~Q(state="issued") | (Q(decided_by__isnull=False) & ~Q(decided_by=F("proposed_by"))),
                name="credit_needs_a_second_person",
            ),
            models.CheckConstraint(
                condition=Q(state="issued", credit_note__isnull=False)
                | Q(state__in=["proposed", "declined"], credit_note=None),
                name="credit_is_issued_with_its_note",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.net_micros} micros of {self.invoice} ({self.state})"


class InvoiceMail(models.Model):
    """Whether an invoice was sent. It may go out twice where a sender died after sending; never not at all."""

    invoice = models.OneToOneField(Invoice, models.PROTECT, related_name="mail")
    tries = models.PositiveSmallIntegerField(default=0)
    next_try_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "invoice mails"
        indexes = [models.Index(fields=["next_try_at"], condition=Q(sent_at=None), name="invoice_mail_to_send")]

    def __str__(self) -> str:
        return f"{self.invoice}: {'sent' if self.sent_at else f'{self.tries} tries'}"
