"""How much may be held at once, and by what it is held."""

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField
from provisioning.models.instances import Instance


class Quota(models.Model):
    """One limit on what may be held at once, by an organization or one of its projects.

    It counts every GPU whose model and market it names; an empty model or
    market stands for all of them together. `held` counts from the request
    until the confirmed release, and is the sum of the `QuotaHold`s that it
    applies to; `reserved` is the most GPUs of reservations in one hour to come.
    A limit below what is taken stops nothing; it only refuses more.
    """

    class Unit(models.TextChoices):
        GPUS = "gpus", _("GPUs")
        MICROS_PER_HOUR = "micros_per_hour", _("Spend per hour")

    public_id = PublicIdField(prefix="quo")
    organization = models.ForeignKey("marketplace.Organization", models.CASCADE, related_name="quotas")
    project = models.ForeignKey(
        "marketplace.Project", models.CASCADE, null=True, related_name="quotas", help_text="null: all projects together"
    )
    gpu_model = models.CharField(max_length=80, blank=True, help_text="as offers name it; empty: all together")
    market = models.CharField(max_length=10, blank=True, choices=Instance.Market.choices, help_text="empty: all")
    unit = models.CharField(max_length=15, choices=Unit.choices, default=Unit.GPUS)
    limit = models.BigIntegerField(help_text="GPUs, or micros of the organization's currency for an hour of all of it")
    held = models.BigIntegerField(default=0)
    reserved = models.PositiveBigIntegerField(
        default=0, help_text="GPUs of reservations in the fullest hour to come: never too few, and soon not too many"
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "project", "gpu_model", "market", "unit"],
                nulls_distinct=False,
                name="quota_one_per_owner_model_market_and_unit",
            ),
            models.CheckConstraint(condition=Q(limit__gte=0, held__gte=0), name="quota_is_never_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.held}/{self.limit} {self.unit} of {self.project or self.organization}"

    @property
    def free(self) -> int:
        return max(0, self.limit - self.taken)

    @property
    def taken(self) -> int:
        """What is not free: held now, and reserved in the fullest hour to come."""
        return self.held + self.reserved

    @property
    def is_spend(self) -> bool:
        return self.unit == Quota.Unit.MICROS_PER_HOUR

    @property
    def is_first(self) -> bool:
        """Whether it is the limit of all GPUs together, which every organization and project has."""
        return not self.gpu_model and not self.market and not self.is_spend


class QuotaHold(models.Model):
    """What one thing holds of every quota that applies to it: a run of an instance, a bid, a reservation."""

    holder = models.CharField(max_length=32, unique=True, help_text="the public id of what holds it")
    project = models.ForeignKey("marketplace.Project", models.PROTECT, related_name="+", db_index=False)
    token = models.ForeignKey("marketplace.ApiToken", models.SET_NULL, null=True, related_name="+")
    gpu_model = models.CharField(max_length=80)
    market = models.CharField(max_length=10, choices=Instance.Market.choices)
    gpus = models.PositiveIntegerField()
    micros_per_hour = models.BigIntegerField(help_text="what all of it costs for an hour while it runs")

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(gpus__gt=0, micros_per_hour__gte=0) & ~Q(gpu_model="") & ~Q(market=""),
                name="quota_hold_holds_something_of_a_model_on_a_market",
            ),
        ]
        indexes = [models.Index(F("project"), F("market"), name="quota_hold_by_project")]

    def __str__(self) -> str:
        return f"{self.holder} holds {self.gpus} {self.gpu_model} ({self.market})"
