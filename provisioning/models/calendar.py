"""What of an offer is promised, now and in each hour to come."""

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Func, Q, Value


def to_the(unit: str, column: str) -> Func:
    """The UTC hour, or day, in which the column's time lies."""
    return Func(Value(unit), F(column), Value("UTC"), function="date_trunc", output_field=models.DateTimeField())


class Capacity(models.Model):
    """An offer's GPUs against what is promised of them. Every promise locks this row, so it is taken last."""

    offer = models.OneToOneField("marketplace.Offer", models.CASCADE, primary_key=True, related_name="capacity")
    gpus = models.PositiveIntegerField(
        default=0, help_text="in good order on nodes that may be sold, as of `counted_at`"
    )
    open_ended = models.PositiveIntegerField(default=0, help_text="held on demand, by what has no end")
    peak = models.PositiveIntegerField(default=0, help_text="the most that any hour from now on has committed")
    waiting = models.PositiveIntegerField(default=0, help_text="wanted by orders that wait, before any new order")
    lets_pass = models.BooleanField(
        default=True, db_default=True, help_text="new orders may have what those that wait leave over"
    )
    for_spot = models.PositiveIntegerField(
        null=True, help_text="the most that spot may hold until the next auction; none: there was no auction yet"
    )
    counted_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.open_ended} + {self.peak} of {self.gpus} GPUs of {self.offer}"


class CommittedDay(models.Model):
    """How many GPUs of an offer are committed to reservations in each hour of one UTC day.

    Days without any have no row. A block of some days is some rows to write: a
    row for each hour was most of what a booking cost the database.
    """

    offer = models.ForeignKey("marketplace.Offer", models.CASCADE, related_name="committed_days", db_index=False)
    day = models.DateTimeField(help_text="when it begins")
    gpus = ArrayField(models.IntegerField(), size=24, help_text="hour by hour")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["offer", "day"], name="committed_day_once_per_offer"),
            models.CheckConstraint(condition=Q(day=to_the("day", "day")), name="committed_day_begins_at_midnight"),
            models.CheckConstraint(condition=Q(gpus__len=24), name="committed_day_has_24_hours"),
            models.CheckConstraint(
                condition=Func(F("gpus"), template="0 <= ALL (%(expressions)s)", output_field=models.BooleanField()),
                name="committed_hours_are_never_below_zero",
            ),
        ]

    def __str__(self) -> str:
        return f"up to {max(self.gpus)} GPUs of {self.offer} on {self.day:%Y-%m-%d}"
