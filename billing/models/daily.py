"""What was sold in each day, summed up, and what has changed since."""

from django.db import models


class DailyRevenue(models.Model):
    """What one thing brought on one market in one UTC day. Written anew for a whole day at a time, see `daily`.

    `thing` is an offer, of hours that were paid ahead (market `reserved`) the
    reservation, and nothing for storage and for what has no offer.
    """

    day = models.DateField()
    thing = models.CharField(max_length=100, blank=True)
    market = models.CharField(max_length=32, blank=True)
    currency = models.CharField(max_length=3)
    micros = models.BigIntegerField()
    summed_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["day", "thing", "market", "currency"], name="daily_revenue_once_per_day_and_thing"
            )
        ]

    def __str__(self) -> str:
        return f"{self.day}: {self.micros} micros of {self.thing} ({self.market})"


class RevenueToSum(models.Model):
    """A stretch of time in which something was charged or given back after its days were summed up last.

    Whoever moves the money writes it, in the same transaction; the next sweep takes it.
    """

    since = models.DateTimeField()
    through = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.since} to {self.through}"
