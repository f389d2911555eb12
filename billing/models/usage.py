"""What was used, at which price, what was taken for it, and how long the money lasts."""

from typing import Any

from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import DateTimeRangeField, RangeOperators
from django.contrib.postgres.indexes import BrinIndex
from django.db import models
from django.db.models import ExpressionWrapper, F, Func, Q, Value
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField


def to_the_millisecond(column: str) -> Func:
    """The column's time without its microseconds."""
    return Func(Value("milliseconds"), F(column), function="date_trunc", output_field=models.DateTimeField())


def one_resource_and_meter() -> Func:
    """A range of one number that stands for resource and meter, so that && can compare them.

    Plain PostgreSQL has no GiST operator class for text (that is btree_gist).
    Two resources whose 64-bit hashes collide could not be metered at the same
    time; with a million of them running the odds are one in forty million.
    """
    meter = Func(F("meter"), Value(0), function="hashtextextended", output_field=models.BigIntegerField())
    both = Func(F("resource_id"), meter, function="hashtextextended", output_field=models.BigIntegerField())
    return Func(both, both, Value("[]"), function="int8range", output_field=models.TextField())


class LongNumberField(models.Field):  # type: ignore[type-arg]  # which Django itself does not take
    """A whole number of up to 38 digits: an integral of money over time outgrows 64 bits."""

    def db_type(self, connection: Any) -> str:
        return "numeric(38, 0)"

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> int | None:
        return None if value is None else int(value)

    def to_python(self, value: Any) -> int | None:
        return None if value is None else int(value)


class Unit(models.TextChoices):
    """What a price is for an hour of. Each meter counts one of these, see `UNITS`."""

    GPU = "gpu", _("GPU")
    GIB = "gib", _("GiB")


class PriceModel(models.TextChoices):
    """How an organization's use of a month becomes an amount; see `tiers`."""

    FLAT = "flat", _("One price")
    GRADUATED = "graduated", _("Graduated: each hour at the price of its tier")
    VOLUME = "volume", _("Volume: all hours at the price of the tier that the month reached")


class PriceVersion(models.Model):
    """What an hour of one unit of a thing for sale costs from a moment on. Immutable: a new price is a new version.

    One that was withdrawn with its list before its moment never holds, and is not in force at any.
    One that floats is what it says only at first; its points say what it is later. One with tiers (`[from unit-hours,
    micros]`, the first from 0) is charged at its base rate, the first tier's, and `adjusting` brings the difference.
    """

    public_id = PublicIdField(prefix="prc")
    sku = models.CharField(max_length=100)
    currency = models.CharField(max_length=3)
    unit = models.CharField(max_length=8, choices=Unit.choices, default=Unit.GPU)
    micros_per_unit_hour = models.BigIntegerField()
    is_floating = models.BooleanField(default=False)
    model = models.CharField(max_length=12, choices=PriceModel.choices, default=PriceModel.FLAT)
    tiers = models.JSONField(default=list)
    minimum_micros = models.BigIntegerField(default=0, help_text="what a month in which it is used costs at least")
    name = models.CharField(max_length=200, blank=True)
    price_list = models.ForeignKey("billing.PriceList", models.PROTECT, null=True, blank=True, related_name="versions")
    effective_from = models.DateTimeField()
    published_at = models.DateTimeField()
    published_by = models.CharField(max_length=254)
    withdrawn_at = models.DateTimeField(null=True, blank=True, help_text="with its list, before it ever held")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["sku", "currency", "effective_from"],
                condition=Q(withdrawn_at=None),
                name="price_one_per_moment",
            ),
            models.CheckConstraint(
                condition=Q(withdrawn_at=None)
                | Q(withdrawn_at__lt=F("effective_from"), price_list__isnull=False, is_floating=False),
                name="price_is_withdrawn_before_it_holds_or_never",
            ),
            models.CheckConstraint(condition=Q(micros_per_unit_hour__gt=0), name="price_is_positive"),
            models.CheckConstraint(
                condition=Q(effective_from__gte=F("published_at")), name="price_is_never_published_for_the_past"
            ),
            models.CheckConstraint(condition=Q(currency__regex="^[A-Z]{3}$"), name="price_currency_is_an_iso_code"),
            models.UniqueConstraint(
                fields=["sku", "currency"], condition=Q(is_floating=True), name="price_floats_once_per_sku_and_currency"
            ),
            models.CheckConstraint(
                condition=Q(is_floating=False) | Q(model="flat", minimum_micros=0), name="price_that_floats_is_flat"
            ),
            models.CheckConstraint(condition=Q(minimum_micros__gte=0), name="price_minimum_is_not_negative"),
        ]
        indexes = [
            # The few whose use has to be adjusted, among all versions there ever were.
            models.Index(fields=["id"], condition=~Q(model="flat") | Q(minimum_micros__gt=0), name="price_to_adjust"),
        ]

    def __str__(self) -> str:
        return f"{self.sku}: {self.micros_per_unit_hour} micros {self.currency} per {self.unit}-hour"


class PricePoint(models.Model):
    """From when on a floating price is another amount. Append-only, in the order of time: a trigger refuses the rest.

    `sum_micro_ms` is the price times the milliseconds that it held, summed from the first point up to this one.
    """

    price_version = models.ForeignKey(PriceVersion, models.PROTECT, related_name="points", db_index=False)
    starts_at = models.DateTimeField()
    micros_per_unit_hour = models.BigIntegerField()
    sum_micro_ms = LongNumberField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["price_version", "starts_at"], name="price_point_one_per_moment"),
            models.CheckConstraint(condition=Q(micros_per_unit_hour__gt=0), name="price_point_is_positive"),
            models.CheckConstraint(condition=Q(sum_micro_ms__gte=0), name="price_point_sums_forward"),
            models.CheckConstraint(
                condition=Q(starts_at=to_the_millisecond("starts_at")), name="price_point_at_a_whole_millisecond"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.price_version.sku}: {self.micros_per_unit_hour} micros from {self.starts_at:%Y-%m-%d %H:%M:%S}"


class UsageSpan(models.Model):
    """Use of a resource from a moment to another, in whole milliseconds: open while it runs, closed once.

    `started_at` and `ended_at` are what is written; `during` is the half-open
    range that PostgreSQL makes of them, which refuses an end before the start. A span that ended where it began has an
    empty range, which overlaps nothing and costs nothing, and still tells when.
    """

    class Meter(models.TextChoices):
        GPU = "gpu", _("GPUs")
        VOLUME = "volume", _("Volumes")

    public_id = PublicIdField(prefix="spn")
    organization = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="usage_spans")
    resource_id = models.CharField(max_length=64)
    resource_name = models.CharField(max_length=200)
    labels = models.JSONField(default=dict)
    meter = models.CharField(max_length=16, choices=Meter.choices, default=Meter.GPU)
    quantity = models.PositiveIntegerField()
    price_version = models.ForeignKey(PriceVersion, models.PROTECT, related_name="usage_spans", db_index=False)
    covered_by = models.CharField(
        max_length=64,
        blank=True,
        default="",
        help_text="what paid for it ahead, so that it is measured and not charged",
    )
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)
    during = models.GeneratedField(
        expression=Func(F("started_at"), F("ended_at"), function="tstzrange"),
        output_field=DateTimeRangeField(),
        db_persist=True,
    )
    charged_micros = models.BigIntegerField(default=0)
    charged_through = models.DateTimeField()
    # In no index are columns that a charge changes, so that PostgreSQL may write the row anew without touching any.
    is_charged = models.GeneratedField(
        expression=ExpressionWrapper(
            Q(ended_at__isnull=False, charged_through__gte=F("ended_at")), output_field=models.BooleanField()
        ),
        output_field=models.BooleanField(),
        db_persist=True,
    )
    invoiced_micros = models.BigIntegerField(default=0)
    invoiced_through = models.DateTimeField(null=True, blank=True)
    is_accrued = models.BooleanField(
        db_default=False, help_text="it is over, and its supplier is owed its part of all of it"
    )

    class Meta:
        constraints = [
            ExclusionConstraint(
                name="usage_span_no_overlap",
                expressions=[
                    (one_resource_and_meter(), RangeOperators.OVERLAPS),
                    ("during", RangeOperators.OVERLAPS),
                ],
            ),
            models.UniqueConstraint(
                fields=["resource_id", "meter"], condition=Q(ended_at=None), name="usage_span_one_open_per_meter"
            ),
            models.CheckConstraint(condition=Q(quantity__gt=0), name="usage_span_measures_something"),
            models.CheckConstraint(
                condition=Q(
                    started_at=to_the_millisecond("started_at"), charged_through=to_the_millisecond("charged_through")
                )
                & (Q(ended_at=None) | Q(ended_at=to_the_millisecond("ended_at"))),
                name="usage_span_in_whole_milliseconds",
            ),
            models.CheckConstraint(
                condition=Q(charged_micros__gte=0, charged_through__gte=F("started_at")),
                name="usage_span_charged_from_its_start",
            ),
            models.CheckConstraint(
                condition=Q(ended_at=None) | Q(charged_through__lte=F("ended_at")),
                name="usage_span_not_charged_beyond_its_end",
            ),
            models.CheckConstraint(
                condition=Q(invoiced_through=None, invoiced_micros=0)
                | Q(invoiced_through__gte=F("started_at"), invoiced_micros__gte=0),
                name="usage_span_invoiced_from_its_start",
            ),
        ]
        indexes = [
            models.Index(fields=["organization", "-started_at"], name="usage_span_newest_first"),
            models.Index(fields=["resource_id", "-started_at"], name="usage_span_by_resource"),
            # Who pays a floating price, and when the last that did ended: no point may come before that.
            models.Index(fields=["price_version", "ended_at"], name="usage_span_by_price"),
            models.Index(fields=["organization"], condition=Q(ended_at=None), name="usage_span_open"),
            models.Index(fields=["organization"], condition=Q(is_charged=False), name="usage_span_to_charge"),
            models.Index(
                fields=["organization"],
                condition=Q(ended_at=None) | Q(invoiced_through=None) | ~Q(invoiced_through=F("ended_at")),
                name="usage_span_to_invoice",
            ),
            models.Index(fields=["id"], condition=Q(is_accrued=False), name="usage_span_to_accrue"),
            # Time that something else paid for: what results took is found by what they are of.
            models.Index(fields=["covered_by"], condition=~Q(covered_by=""), name="usage_span_covered"),
            # What a day touches, among years of spans that lie in about the order in which they ended.
            BrinIndex(fields=["ended_at"], autosummarize=True, name="usage_span_when_ended"),
        ]

    def __str__(self) -> str:
        return f"{self.resource_id} {self.meter} from {self.started_at:%Y-%m-%d %H:%M:%S}"

    @property
    def is_open(self) -> bool:
        return self.ended_at is None

    @property
    def micros_per_unit_hour(self) -> int:
        """What it costs: nothing where something else paid for it ahead."""
        return 0 if self.covered_by else self.price_version.micros_per_unit_hour

    @property
    def unit(self) -> Unit:
        """What `quantity` counts."""
        return UNITS[self.meter]


UNITS: dict[str, Unit] = {UsageSpan.Meter.GPU: Unit.GPU, UsageSpan.Meter.VOLUME: Unit.GIB}


class Charge(models.Model):
    """Money taken for a span up to a moment, and from where: promotional credit, cash, or owed.

    What an organization is charged at once is posted together, by one transfer
    for each account and hold that pays: the keys of these are `posting`, a
    colon and one part more.

    A negative amount gives back what was taken for time after the span's end:
    a meter may close at a last proof of life that lies before the last charge,
    or a `correction` moved the end of one that was closed.
    """

    key = models.CharField(max_length=120)
    posting = models.CharField(max_length=120, help_text="the key of the first charge that was posted with it")
    span = models.ForeignKey(UsageSpan, models.PROTECT, related_name="charges", db_index=False)
    correction = models.ForeignKey(
        "billing.UsageCorrection", models.PROTECT, null=True, related_name="charges", db_index=False
    )
    through = models.DateTimeField()
    amount_micros = models.BigIntegerField()
    promo_micros = models.BigIntegerField(default=0)
    cash_micros = models.BigIntegerField(default=0)
    owed_micros = models.BigIntegerField(default=0)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(
                F("span"),
                F("through"),
                ExpressionWrapper(Q(amount_micros__gt=0), output_field=models.BooleanField()),
                F("correction"),
                nulls_distinct=False,
                name="charge_once_per_moment",
            ),
            models.UniqueConstraint(
                fields=["span"], condition=Q(amount_micros__lt=0, correction=None), name="charge_corrected_once"
            ),
            models.UniqueConstraint(
                fields=["correction"], condition=Q(correction__isnull=False), name="charge_once_per_correction"
            ),
            models.CheckConstraint(condition=~Q(amount_micros=0), name="charge_moves_something"),
            models.CheckConstraint(
                condition=Q(amount_micros=F("promo_micros") + F("cash_micros") + F("owed_micros")),
                name="charge_says_what_paid_it",
            ),
        ]
        indexes = [
            models.Index(fields=["posting"], condition=Q(owed_micros__gt=0), name="charge_owed"),
        ]

    def __str__(self) -> str:
        return f"{self.key}: {self.amount_micros} micros"


class Runway(models.Model):
    """How long an organization's money lasts if nothing changes; null where nothing burns.

    Written when a span opens or closes and when money comes in: between those
    moments funds fall in a straight line, so nobody has to look at the spans.
    """

    organization = models.OneToOneField("marketplace.Organization", models.PROTECT, related_name="runway")
    burn_micros_per_hour = models.BigIntegerField(default=0)
    funds_micros = models.BigIntegerField(default=0)
    as_of = models.DateTimeField()
    exhausts_at = models.DateTimeField(null=True, blank=True, db_index=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(burn_micros_per_hour__gte=0), name="runway_burns_forward"),
        ]

    def __str__(self) -> str:
        return f"{self.burn_micros_per_hour} micros per hour until {self.exhausts_at}"
