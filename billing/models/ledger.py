"""The books: accounts, what moved between them, and what is set aside."""

from django.contrib.postgres.indexes import BrinIndex
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from billing.public_ids import PublicIdField

CUSTOMER_KINDS = ("promo", "cash", "receivable")
SUPPLIER_KINDS = ("payable", "reserve")
PLATFORM_KINDS = (
    "revenue", "fees", "tax", "sla_expense", "processor", "bank", "promo_expense", "deferred", "bad_debt",
    "outcome_cost",
)  # fmt: skip
BOUNDED_KINDS = ("cash", "promo", "reserve")  # never overdrawn
HOLDING_KINDS = ("cash", "promo", "receivable")


class Account(models.Model):
    """A place for money: what came in minus what went out, in micro-units of one currency.

    An organization's accounts carry a running balance, which changes under the
    lock of their row. The platform's own accounts take part in every payment of
    every customer: a running balance there would make all of them queue for one
    row. So they carry none, are never locked, and are summed from their
    transfers when somebody asks (`accounts.balance_micros`).
    """

    class Kind(models.TextChoices):
        CASH = "cash", "Cash"
        PROMO = "promo", "Promotional credit"
        RECEIVABLE = "receivable", "Receivable"
        PAYABLE = "payable", "Payable"
        RESERVE = "reserve", "Reserve"
        REVENUE = "revenue", "Revenue"
        FEES = "fees", "Fees"
        TAX = "tax", "Tax"
        SLA_EXPENSE = "sla_expense", "Service credits"
        PROCESSOR = "processor", "Payment processor"
        BANK = "bank", "Our bank account"
        PROMO_EXPENSE = "promo_expense", "Promotional expense"
        DEFERRED = "deferred", "Paid ahead"
        BAD_DEBT = "bad_debt", "Bad debts"
        OUTCOME_COST = "outcome_cost", "What results took"

    public_id = PublicIdField(prefix="acc")
    organization = models.ForeignKey(
        "marketplace.Organization", models.PROTECT, null=True, blank=True, related_name="accounts"
    )
    kind = models.CharField(max_length=16, choices=Kind.choices)
    currency = models.CharField(max_length=3)
    balance_micros = models.BigIntegerField(default=0)
    held_micros = models.BigIntegerField(default=0)
    credit_limit_micros = models.BigIntegerField(default=0, help_text="of a receivable: how much may be owed")
    sanction = models.CharField(
        max_length=16, blank=True, help_text="of a receivable: what unpaid invoices forbid, see collecting"
    )
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "kind", "currency"],
                condition=Q(organization__isnull=False),
                name="account_one_per_kind_and_currency",
            ),
            models.UniqueConstraint(
                fields=["kind", "currency"],
                condition=Q(organization__isnull=True),
                name="account_one_per_kind_of_the_platform",
            ),
            models.CheckConstraint(
                condition=Q(organization__isnull=True, kind__in=PLATFORM_KINDS)
                | Q(organization__isnull=False, kind__in=CUSTOMER_KINDS + SUPPLIER_KINDS),
                name="account_kind_fits_its_owner",
            ),
            models.CheckConstraint(
                condition=Q(organization__isnull=False) | Q(balance_micros=0, held_micros=0),
                name="account_of_the_platform_has_no_running_balance",
            ),
            models.CheckConstraint(
                condition=~Q(kind__in=BOUNDED_KINDS) | Q(balance_micros__gte=F("held_micros")),
                name="account_never_overdrawn",
            ),
            models.CheckConstraint(
                condition=Q(held_micros=0) | Q(held_micros__gt=0, kind__in=HOLDING_KINDS),
                name="account_holds_what_customers_pay_from",
            ),
            models.CheckConstraint(
                condition=Q(credit_limit_micros=0) | Q(credit_limit_micros__gt=0, kind="receivable"),
                name="account_gives_credit_on_what_is_owed_only",
            ),
            models.CheckConstraint(
                condition=Q(sanction="")
                | Q(sanction__in=["restrict", "stop_spot", "stop_on_demand"], kind="receivable"),
                name="account_is_sanctioned_for_what_is_owed_only",
            ),
            models.CheckConstraint(condition=Q(currency__regex="^[A-Z]{3}$"), name="account_currency_is_an_iso_code"),
        ]
        indexes = [models.Index(fields=["sanction"], condition=~Q(sanction=""), name="account_sanctioned")]

    def __str__(self) -> str:
        return f"{self.kind} {self.currency} {self.public_id}"

    @property
    def is_platform(self) -> bool:
        return self.organization_id is None

    @property
    def owed_micros(self) -> int:
        """What is owed, of a receivable."""
        return max(0, -self.balance_micros)

    @property
    def free_micros(self) -> int:
        """What may be spent or set aside now; of a receivable, how much more may be owed."""
        if self.kind == self.Kind.RECEIVABLE:
            return max(0, self.credit_limit_micros - self.owed_micros) - self.held_micros
        return self.balance_micros - self.held_micros


class Hold(models.Model):
    """Money set aside on one account: taken in one or more posts, given back when voided or expired.

    `pending` while something is left to take, `posted` once all of it was
    taken. The account's `held_micros` is the sum of what its pending holds have
    left, so what is held cannot be spent twice. One without `expires_at` waits for whoever closes it: an escrow.
    """

    class State(models.TextChoices):
        PENDING = "pending", "Pending"
        POSTED = "posted", "Posted"
        VOIDED = "voided", "Voided"
        EXPIRED = "expired", "Expired"

    public_id = PublicIdField(prefix="hld")
    key = models.CharField(max_length=200, unique=True)
    account = models.ForeignKey(Account, models.PROTECT, related_name="holds", db_index=False)
    amount_micros = models.BigIntegerField()
    posted_micros = models.BigIntegerField(default=0)
    state = models.CharField(max_length=8, choices=State.choices, default=State.PENDING)
    purpose = models.CharField(max_length=40)
    resource_id = models.CharField(max_length=64)
    expires_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_micros__gt=0, posted_micros__gte=0, posted_micros__lte=F("amount_micros")),
                name="hold_posts_no_more_than_it_holds",
            ),
            models.CheckConstraint(
                condition=Q(state="posted", posted_micros=F("amount_micros"))
                | Q(state__in=["pending", "voided", "expired"], posted_micros__lt=F("amount_micros")),
                name="hold_is_posted_when_nothing_is_left",
            ),
            models.CheckConstraint(
                condition=Q(expires_at=None, purpose="escrow") | Q(expires_at__isnull=False) & ~Q(purpose="escrow"),
                name="hold_of_an_escrow_never_expires",
            ),
        ]
        indexes = [
            models.Index(fields=["resource_id"], condition=Q(state="pending"), name="hold_pending_by_resource"),
            models.Index(fields=["expires_at"], condition=Q(state="pending"), name="hold_pending_by_expiry"),
            models.Index(fields=["account"], condition=Q(state="pending"), name="hold_pending_by_account"),
        ]

    def __str__(self) -> str:
        return f"{self.key} ({self.state})"

    @property
    def left_micros(self) -> int:
        """What can still be taken."""
        return self.amount_micros - self.posted_micros if self.state == self.State.PENDING else 0


class Transfer(models.Model):
    """Money that moved once, from one account to another. Append-only: a trigger refuses every change.

    One row has one source, one target and one amount, so the books balance by
    construction; a correction is a new transfer. `effective_at` is when it
    counts, `created_at` when it was written down.
    """

    public_id = PublicIdField(prefix="tra")
    key = models.CharField(max_length=200, unique=True)
    source = models.ForeignKey(Account, models.PROTECT, related_name="outgoing")
    target = models.ForeignKey(Account, models.PROTECT, related_name="incoming")
    amount_micros = models.BigIntegerField()
    reason = models.CharField(max_length=200)
    hold = models.ForeignKey(Hold, models.PROTECT, null=True, blank=True, related_name="posts", db_index=False)
    effective_at = models.DateTimeField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(amount_micros__gt=0), name="transfer_moves_something"),
            models.CheckConstraint(condition=~Q(source=F("target")), name="transfer_goes_somewhere_else"),
        ]
        indexes = [
            # Few among the charges of each minute: what an account paid for other things than use.
            models.Index(
                fields=["source"], condition=~Q(key__startswith="charge:"), name="transfer_other_than_for_use"
            ),
            # What counts for a day. Rows come in about that order and never change.
            BrinIndex(fields=["effective_at"], autosummarize=True, name="transfer_when_it_counts"),
        ]

    def __str__(self) -> str:
        return f"{self.key}: {self.amount_micros} micros"
