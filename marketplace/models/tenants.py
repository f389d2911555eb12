"""Who the customers are: organizations, projects, people and what lets them in."""

from datetime import datetime
from typing import Any

from django.contrib.auth.models import AbstractUser, BaseUserManager
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField
from marketplace.models.idle import IdleAction


class UserManager(BaseUserManager["User"]):
    """Makes people who sign in with their e-mail address."""

    def create_user(self, email: str, password: str | None = None, **extra: Any) -> "User":
        user = self.model(email=self.normalize_email(email).lower(), **extra)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **extra: Any) -> "User":
        return self.create_user(email, password, **{**extra, "is_staff": True, "is_superuser": True})


class User(AbstractUser):
    """A person. `is_staff` makes a capacity manager of the operator, who may open the console."""

    username = None  # type: ignore[assignment]
    email = models.EmailField(_("e-mail address"), unique=True)

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS = []
    objects = UserManager()  # type: ignore[assignment,misc]

    def __str__(self) -> str:
        return self.email

    @property
    def display_name(self) -> str:
        return self.get_full_name() or self.email


class Budgeted(models.Model):
    """Whoever may have budgets of its own. Those for a month are rows of `Budget`, this says whether there is any, so
    that a launch where there is none asks nothing; that for an hour is here, in micros, and null is none. See `spend`.
    """

    has_monthly_budget = models.BooleanField(default=False, help_text="kept by `budgets.change`")
    hourly_budget_micros = models.BigIntegerField(null=True, blank=True)

    class Meta:
        abstract = True

    @property
    def has_budget(self) -> bool:
        return self.has_monthly_budget or self.hourly_budget_micros is not None


def budget_is_never_negative(owner: str) -> models.CheckConstraint:
    """The constraint that every `Budgeted` has under its own name; null passes a check."""
    condition = Q(hourly_budget_micros=None) | Q(hourly_budget_micros__gte=0)
    return models.CheckConstraint(condition=condition, name=f"{owner}_budget_is_never_negative")


class Organization(Budgeted):
    """A tenant: one bill, one currency, its own people. A supplier is an organization that sells capacity."""

    public_id = PublicIdField(prefix="org")
    name = models.CharField(max_length=100)
    currency = models.CharField(max_length=3, default="USD")
    is_supplier = models.BooleanField(default=False)
    suspended_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [budget_is_never_negative("organization")]

    def __str__(self) -> str:
        return self.name


class Project(Budgeted):
    """The boundary of cost and access inside an organization."""

    public_id = PublicIdField(prefix="prj")
    organization = models.ForeignKey(Organization, models.PROTECT, related_name="projects")
    name = models.CharField(max_length=100)
    suspended_at = models.DateTimeField(null=True, blank=True)
    idle_action = models.CharField(max_length=4, choices=IdleAction.choices, default=IdleAction.SHOW)
    idle_stop_minutes = models.PositiveIntegerField(default=60, help_text="from the warning, where it is to be stopped")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(idle_action__in=IdleAction.values), name="project_idle_action_is_known"),
            models.UniqueConstraint(fields=["organization", "name"], name="project_name_once_per_organization"),
            budget_is_never_negative("project"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_suspended(self) -> bool:
        return self.suspended_at is not None or self.organization.suspended_at is not None


class Role(models.TextChoices):
    """What a person is in an organization; what each may do stands in `permissions.py`."""

    OWNER = "owner", _("Owner")
    ADMIN = "admin", _("Admin")
    BILLING = "billing", _("Billing")
    DEVELOPER = "developer", _("Developer")
    VIEWER = "viewer", _("Viewer")


class Membership(models.Model):
    """A person's role in an organization."""

    public_id = PublicIdField(prefix="mbr")
    organization = models.ForeignKey(Organization, models.PROTECT, related_name="memberships")
    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role.choices)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["organization", "user"], name="membership_once_per_person"),
            models.CheckConstraint(condition=Q(role__in=Role.values), name="membership_role_is_known"),
        ]

    def __str__(self) -> str:
        return f"{self.user} ({self.role})"


class Invitation(models.Model):
    """An e-mail address asked to join; the link's secret is kept as a hash."""

    public_id = PublicIdField(prefix="inv")
    organization = models.ForeignKey(Organization, models.PROTECT, related_name="invitations")
    email = models.EmailField()
    role = models.CharField(max_length=10, choices=Role.choices)
    secret_hash = models.CharField(max_length=64, unique=True)
    invited_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "email"],
                condition=Q(accepted_at=None, revoked_at=None),
                name="invitation_open_once_per_address",
            )
        ]

    def __str__(self) -> str:
        return f"{self.email} ({self.role})"

    def is_open(self, at: datetime) -> bool:
        return self.accepted_at is None and self.revoked_at is None and at < self.expires_at


class ApiToken(Budgeted):
    """A programmatic key of one member: never more than that member's role, narrowed by scopes.

    The secret is shown once; only its SHA-256 is kept (it carries 256 random
    bits, so a slow hash would protect nothing).
    """

    public_id = PublicIdField(prefix="tok")
    membership = models.ForeignKey(Membership, models.CASCADE, related_name="tokens")
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="+")
    # A token that was made by a token ends with it.
    made_by = models.ForeignKey("self", models.CASCADE, null=True, blank=True, related_name="made")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=12)
    secret_hash = models.CharField(max_length=64, unique=True)
    scopes = models.JSONField(default=list)
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [budget_is_never_negative("token")]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class SshKey(models.Model):
    """A public key that may enter a project's instances."""

    public_id = PublicIdField(prefix="key")
    project = models.ForeignKey(Project, models.PROTECT, related_name="ssh_keys")
    name = models.CharField(max_length=100)
    public_key = models.TextField()
    fingerprint = models.CharField(max_length=64)
    added_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "fingerprint"], name="ssh_key_once_per_project")]

    def __str__(self) -> str:
        return self.name


class AuditEntry(models.Model):
    """Who changed what: append-only, written in the transaction of the change itself."""

    public_id = PublicIdField(prefix="aud")
    organization = models.ForeignKey(
        Organization, models.PROTECT, null=True, related_name="audit_entries", db_index=False
    )
    actor = models.ForeignKey(
        User, models.PROTECT, null=True, related_name="+", db_index=False, help_text="null: the system itself"
    )
    actor_name = models.CharField(max_length=254)
    token_id_used = models.CharField(max_length=32, blank=True)
    verb = models.CharField(max_length=40)
    subject_id = models.CharField(max_length=32)
    before = models.JSONField(null=True)
    after = models.JSONField(null=True)
    request_id = models.CharField(max_length=64, blank=True)
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        indexes = [models.Index(F("organization"), F("id").desc(), name="audit_newest_first")]
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.actor_name} {self.verb} {self.subject_id}"


class IdempotencyRecord(models.Model):
    """The stored answer to one money or capacity POST; written in the transaction of its effect."""

    organization = models.ForeignKey(Organization, models.CASCADE, related_name="+")
    route = models.CharField(max_length=200)
    key = models.CharField(max_length=255)
    fingerprint = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField(null=True)
    body = models.JSONField(null=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["organization", "route", "key"], name="idempotency_key_used_once")
        ]

    def __str__(self) -> str:
        return f"{self.route} {self.key}"
