"""What of an offer is promised, now and in each hour to come."""

from django.db import models
from django.db.models import F, Func, Q, Value


def to_the_hour(column: str) -> Func:
    """The UTC hour in which the column's time lies."""
    return Func(Value("hour"), F(column), Value("UTC"), function="date_trunc", output_field=models.DateTimeField())


class Capacity(models.Model):
    """An offer's GPUs against what is promised of them. Every promise locks this row, so it is taken last."""

    offer = models.OneToOneField("marketplace.Offer", models.CASCADE, primary_key=True, related_name="capacity")
    gpus = models.PositiveIntegerField(
        default=0, help_text="in good order on nodes that may be sold, as of `counted_at`"
    )
    open_ended = models.PositiveIntegerField(default=0, help_text="held on demand, by what has no end")
    peak = models.PositiveIntegerField(default=0, help_text="the most that any hour from now on has committed")
    waiting = models.PositiveIntegerField(default=0, help_text="wanted by orders that wait, before any new order")
    for_spot = models.PositiveIntegerField(
        null=True, help_text="the most that spot may hold until the next auction; none: there was no auction yet"
    )
    counted_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.open_ended} + {self.peak} of {self.gpus} GPUs of {self.offer}"


class CommittedHour(models.Model):
    """How many GPUs of an offer are committed to reservations in one UTC hour; hours without any have no row."""

    offer = models.ForeignKey("marketplace.Offer", models.CASCADE, related_name="committed_hours")
    hour = models.DateTimeField(help_text="when it begins")
    gpus = models.PositiveIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["offer", "hour"], name="committed_hour_once_per_offer"),
            models.CheckConstraint(condition=Q(hour=to_the_hour("hour")), name="committed_hour_begins_on_the_hour"),
        ]

    def __str__(self) -> str:
        return f"{self.gpus} GPUs of {self.offer} at {self.hour:%Y-%m-%d %H}"
