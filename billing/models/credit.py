"""Money that customers have without having paid it in: promotional credit, and how much they may owe."""

from django.db import models
from django.db.models import F, Q

from billing.models.decisions import Proposal, second_person
from billing.models.ledger import Account
from billing.public_ids import PublicIdField


class CreditGrant(models.Model):
    """Promotional credit that was given at once. What expires first is used first; what never does, last.

    `left_micros` is what was left when the grants of the account were last told apart: what was used since then is the
    difference between their sum and the account's balance, see `promotions`.
    """

    public_id = PublicIdField(prefix="cgr")
    account = models.ForeignKey(Account, models.PROTECT, related_name="grants", db_index=False)
    cause = models.CharField(max_length=200, unique=True, help_text="the key of the transfer that gave it")
    reason = models.CharField(max_length=200)
    amount_micros = models.BigIntegerField()
    left_micros = models.BigIntegerField()
    expired_micros = models.BigIntegerField(default=0)
    granted_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)
    told_at = models.DateTimeField(null=True, blank=True, help_text="when its end was told to the customer")

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    left_micros__gte=0, expired_micros__gte=0, amount_micros__gte=F("left_micros") + F("expired_micros")
                ),
                name="credit_grant_has_no_more_left_than_it_gave",
            ),
            models.CheckConstraint(
                condition=Q(expires_at=None) | Q(expires_at__gt=F("granted_at")), name="credit_grant_expires_afterwards"
            ),
            models.CheckConstraint(
                condition=Q(expired_micros=0) | Q(expires_at__isnull=False), name="credit_without_expiry_never_expires"
            ),
        ]
        indexes = [
            models.Index(fields=["account", "expires_at"], name="credit_grant_by_account"),
            models.Index(fields=["expires_at"], condition=Q(left_micros__gt=0), name="credit_grant_to_expire"),
            models.Index(
                fields=["expires_at"], condition=Q(left_micros__gt=0, told_at=None), name="credit_grant_to_tell"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.left_micros} of {self.amount_micros} micros until {self.expires_at}"


class CreditLine(Proposal):
    """How much an organization may owe, and within how many days it pays an invoice. The newest approved one holds."""

    NET_DAYS_MAX = 120

    public_id = PublicIdField(prefix="crl")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="credit_lines")
    limit_micros = models.BigIntegerField()
    net_days = models.PositiveSmallIntegerField()
    reason = models.CharField(max_length=200)

    class Meta:
        constraints = [
            second_person("credit_line"),
            models.CheckConstraint(condition=Q(limit_micros__gte=0), name="credit_line_is_never_negative"),
            models.CheckConstraint(condition=Q(net_days__lte=120), name="credit_line_is_paid_within_120_days"),
            models.UniqueConstraint(
                fields=["organization"], condition=Q(state="proposed"), name="credit_line_proposed_once_at_a_time"
            ),
        ]
        indexes = [models.Index(fields=["organization", "-id"], name="credit_line_newest_first")]

    def __str__(self) -> str:
        return f"{self.limit_micros} micros, {self.net_days} days ({self.state})"
