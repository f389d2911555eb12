"""What was paid ahead and given back of it, as far as invoices are about it."""

from django.db import models
from django.db.models import F, Q

from billing.models.invoices import InvoiceLine
from billing.models.outcomes import Outcome

PURCHASES = ("reservation", "extension", "trade", "outcome", "share", "true_up")
OF_OUTCOMES = ("outcome", "share", "true_up", "reversed")


class PrepaidItem(models.Model):
    """One payment ahead, or what one event gave back of it, with the arithmetic behind it. Written once.

    `key` is that of its transfers, without what tells them apart. `hours` are rows of GPUs, hours, and micros for a
    GPU-hour; a purchase is their sum, what is given back is below zero: their sum less `kept_micros`. Without rows it
    is from before they were kept. What results cost has no hours either: its arithmetic is that of its `outcome`.
    """

    class Kind(models.TextChoices):
        RESERVATION = "reservation"
        EXTENSION = "extension"
        TRADE = "trade"
        CANCELLED = "cancelled"
        SHORTFALL = "shortfall"
        RESOLD = "resold"
        OUTCOME = "outcome"
        SHARE = "share"
        TRUE_UP = "true_up"
        REVERSED = "reversed"

    key = models.CharField(max_length=200, unique=True)
    kind = models.CharField(max_length=12, choices=Kind.choices)
    organization = models.ForeignKey(
        "marketplace.Organization", models.PROTECT, related_name="prepaid_items", db_index=False
    )
    currency = models.CharField(max_length=3)
    resource_id = models.CharField(max_length=64)
    name = models.CharField(max_length=200)
    project = models.CharField(max_length=32, blank=True)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    hours = models.JSONField(default=list)
    kept_micros = models.BigIntegerField(default=0, help_text="of what the hours had cost, what is not given back")
    amount_micros = models.BigIntegerField()
    promo_micros = models.BigIntegerField(help_text="of that, promotional credit; of the same sign")
    at = models.DateTimeField(help_text="when it was paid, or given back")
    outcome = models.OneToOneField(Outcome, models.PROTECT, null=True, related_name="item")

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(kind__in=PURCHASES, amount_micros__gt=0, promo_micros__gte=0)
                & Q(promo_micros__lte=F("amount_micros"), kept_micros=0)
                | ~Q(kind__in=PURCHASES)
                & Q(amount_micros__lt=0, promo_micros__lte=0, promo_micros__gte=F("amount_micros"), kept_micros__gte=0),
                name="prepaid_item_is_paid_or_given_back",
            ),
            models.CheckConstraint(
                condition=Q(kind__in=OF_OUTCOMES, outcome__isnull=False) | ~Q(kind__in=OF_OUTCOMES) & Q(outcome=None),
                name="prepaid_item_of_an_outcome_names_it",
            ),
        ]
        indexes = [models.Index(fields=["organization", "at"], name="prepaid_of_an_organization")]

    def __str__(self) -> str:
        return f"{self.key}: {self.amount_micros} micros"


class InvoicePrepaid(models.Model):
    """An item on its line: one line, once. Outcomes of one resource at one price share a line. Written once."""

    line = models.ForeignKey(InvoiceLine, models.PROTECT, related_name="prepaid")
    item = models.OneToOneField(PrepaidItem, models.PROTECT, related_name="invoiced")

    def __str__(self) -> str:
        return str(self.item)
