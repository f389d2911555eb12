"""What each hour under a guarantee achieved, and what was given back where it fell short."""

from django.db import models
from django.db.models import F, Q

from billing.public_ids import PublicIdField


class GuaranteeHour(models.Model):
    """One UTC hour of one guarantee, and all that its verdict follows from. Written once: a trigger keeps it.

    `evidence` is `curve.Hour` and `curve` the terms' own; together they give these figures again, by whoever wants.
    """

    public_id = PublicIdField(prefix="ghr")
    guarantee = models.CharField(max_length=32, help_text="the public id of the guarantee")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="guarantee_hours")
    resource_id = models.CharField(max_length=64)
    resource_name = models.CharField(max_length=200)
    project = models.CharField(max_length=32, blank=True)
    version = models.CharField(max_length=32)
    supplier = models.ForeignKey("marketplace.Organization", models.PROTECT, null=True, related_name="+")
    supplier_bps = models.PositiveIntegerField(help_text="of the credit, what the supplier bears")
    currency = models.CharField(max_length=3)
    hour = models.DateTimeField()
    curve = models.JSONField()
    evidence = models.JSONField()
    measured_milli = models.BigIntegerField(null=True)
    achieved_bps = models.BigIntegerField(null=True)
    paid_micros = models.BigIntegerField()
    credit_bps = models.PositiveIntegerField()
    credit_micros = models.BigIntegerField()
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["resource_id", "hour"], name="guarantee_judges_an_hour_of_a_resource_once"),
            models.CheckConstraint(
                condition=Q(credit_micros__gte=0, credit_micros__lte=F("paid_micros")),
                name="guarantee_credits_no_more_than_was_paid",
            ),
            models.CheckConstraint(condition=Q(supplier_bps__lte=10_000), name="guarantee_charges_no_more_than_all"),
        ]
        indexes = [
            models.Index(fields=["resource_id", "-hour"], name="guarantee_hour_of_resource"),
            models.Index(fields=["organization", "-hour"], name="guarantee_hour_newest_first"),
            models.Index(fields=["version", "hour"], condition=Q(credit_micros__gt=0), name="guarantee_hour_credited"),
        ]

    def __str__(self) -> str:
        return f"{self.resource_name} {self.hour:%Y-%m-%d %H:%M}: {self.credit_micros} micros"

    @property
    def credited_micros(self) -> int:
        """What it credited in all, with what came when it was known what it cost in the end."""
        later = getattr(self, "correction", None)
        return self.credit_micros + (later.credit_micros if later else 0)


class GuaranteeCorrection(models.Model):
    """What an hour that fell short credited more once it was known what it cost in the end. Written once; see
    `shortfalls.correct` for the figures."""

    hour = models.OneToOneField(GuaranteeHour, models.PROTECT, related_name="correction")
    paid_micros = models.BigIntegerField(help_text="what the hour cost in the end")
    returned_micros = models.BigIntegerField(help_text="of that, what was given back otherwise")
    credit_micros = models.BigIntegerField(help_text="besides what it credited when it was judged")
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(credit_micros__gt=0), name="guarantee_is_corrected_for_its_customer"),
            models.CheckConstraint(
                condition=Q(returned_micros__gte=0, credit_micros__lte=F("paid_micros") - F("returned_micros")),
                name="guarantee_correction_credits_no_more_than_was_paid",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.hour}: {self.credit_micros} micros more"
