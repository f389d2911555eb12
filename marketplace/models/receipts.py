"""Receipts: what was paid for and why, in documents that the platform signed; each organization's form a chain."""

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField


class SigningKey(models.Model):
    """A key with which the platform signs (Ed25519). Its id follows from its public half.

    The private half rests sealed while the key is active, and is destroyed when it is not any more.
    """

    class State(models.TextChoices):
        ACTIVE = "active", _("Active")
        RETIRED = "retired", _("Retired")
        REVOKED = "revoked", _("Revoked")

    MOVES: dict[str, set[str]] = {
        State.ACTIVE: {State.RETIRED, State.REVOKED},
        State.RETIRED: {State.REVOKED},  # It leaked before it was destroyed.
        State.REVOKED: set(),
    }

    public_id = models.CharField(max_length=36, unique=True, editable=False)
    public_key = models.CharField(max_length=64, help_text="32 bytes in hexadecimal")
    private_sealed = models.TextField(blank=True)
    state = models.CharField(max_length=7, choices=State.choices, default=State.ACTIVE)
    created_at = models.DateTimeField()
    retired_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)
    revoked_because = models.CharField(max_length=200, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["state"], condition=Q(state="active"), name="signing_key_one_is_active"),
            models.CheckConstraint(
                condition=(Q(state="active") & ~Q(private_sealed="")) | (~Q(state="active") & Q(private_sealed="")),
                name="signing_key_is_destroyed_with_its_use",
            ),
            models.CheckConstraint(
                condition=Q(state="active", retired_at=None) | (~Q(state="active") & Q(retired_at__isnull=False)),
                name="signing_key_ends_at_a_time",
            ),
            models.CheckConstraint(
                condition=(Q(state="revoked", revoked_at__isnull=False) & ~Q(revoked_because=""))
                | (~Q(state="revoked") & Q(revoked_at=None, revoked_because="")),
                name="signing_key_is_revoked_for_a_reason",
            ),
        ]

    def __str__(self) -> str:
        return self.public_id


class Receipt(models.Model):
    """One link of an organization's chain, never changed. `text` is the body as it is signed, in its canonical form.

    `subject_id` and `event` say which end of which claim it tells of; of each it tells once.
    """

    public_id = PublicIdField(prefix="rcp")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="receipts")
    project = models.ForeignKey("marketplace.Project", models.PROTECT, null=True, related_name="receipts")
    sequence = models.PositiveBigIntegerField(help_text="from 1, without gaps, in each organization")
    previous = models.CharField(max_length=64, blank=True, help_text="digest of the one before")
    digest = models.CharField(max_length=64, unique=True, help_text="SHA-256 of text")
    text = models.TextField()
    subject_id = models.CharField(max_length=32)
    event = models.CharField(max_length=20)
    amount_micros = models.BigIntegerField(help_text="what was charged in the end; after a reversal less")
    currency = models.CharField(max_length=3)
    issued_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["organization", "sequence"], name="receipt_one_for_each_number"),
            models.UniqueConstraint(fields=["subject_id", "event"], name="receipt_once_for_each_end"),
            models.CheckConstraint(
                condition=Q(sequence=1, previous="") | (Q(sequence__gt=1) & ~Q(previous="")),
                name="receipt_follows_another_unless_it_is_the_first",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.public_id} ({self.sequence})"


class ReceiptSignature(models.Model):
    """The platform's signature under a receipt. One whose key was revoked counts no more, and another one joins it."""

    receipt = models.ForeignKey(Receipt, models.PROTECT, related_name="signatures")
    key = models.ForeignKey(SigningKey, models.PROTECT, related_name="signatures")
    at = models.DateTimeField()
    signature = models.CharField(max_length=128, help_text="64 bytes in hexadecimal")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["receipt", "key"], name="receipt_signed_once_by_each_key")]

    def __str__(self) -> str:
        return f"{self.receipt} by {self.key}"


class ReceiptDue(models.Model):
    """A claim of which a receipt has something new to say: a trigger leaves it when a claim closes or is reversed."""

    claim = models.OneToOneField("marketplace.Claim", models.CASCADE, primary_key=True, related_name="+")

    def __str__(self) -> str:
        return f"receipt for {self.claim_id}"
