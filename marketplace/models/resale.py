"""Resale: hours of reservations that their holders sell on, and what was sold."""

from datetime import datetime

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from billing.public_ids import PublicIdField
from provisioning.models.calendar import to_the


class Listing(models.Model):
    """Unstarted hours of a reservation for sale, in whole or part, at one ask per GPU-hour."""

    class State(models.TextChoices):
        OPEN = "open", _("For sale")
        SOLD = "sold", _("Sold")
        WITHDRAWN = "withdrawn", _("Withdrawn")
        EXPIRED = "expired", _("Expired")

    MOVES: dict[str, set[str]] = {
        State.OPEN: {State.SOLD, State.WITHDRAWN, State.EXPIRED},
        State.SOLD: set(),
        State.WITHDRAWN: set(),
        State.EXPIRED: set(),
    }

    public_id = PublicIdField(prefix="lst")
    reservation = models.ForeignKey("marketplace.Reservation", models.PROTECT, related_name="listings")
    offer = models.ForeignKey("marketplace.Offer", models.PROTECT, related_name="listings")
    seller = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="+")
    currency = models.CharField(max_length=3)
    ask_micros = models.BigIntegerField(help_text="for a GPU-hour")
    gpus = models.PositiveIntegerField(help_text="in each hour, as it was listed")
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    min_gpus = models.PositiveIntegerField(default=1, help_text="the smallest order that it serves")
    min_hours = models.PositiveIntegerField(default=1, help_text="the shortest order that it serves")
    state = models.CharField(max_length=9, choices=State.choices, default=State.OPEN)
    created_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(ask_micros__gte=1, gpus__gte=1, min_gpus__gte=1, min_hours__gte=1)
                & Q(min_gpus__lte=F("gpus"), starts_at__lt=F("ends_at")),
                name="listing_sells_something",
            ),
        ]
        indexes = [
            models.Index(fields=["offer", "ask_micros"], name="listing_open_by_price", condition=Q(state="open")),
            models.Index(fields=["seller", "-id"], name="listing_newest_first"),
        ]

    def __str__(self) -> str:
        return self.public_id

    def close(self, state: State, *, at: datetime) -> None:
        """Take what is left of its hours off the market. The caller holds the offer's gate."""
        assert state in Listing.MOVES[self.state]
        self.hours.all().delete()
        Listing.objects.filter(pk=self.pk, state=self.state).update(state=state, closed_at=at)
        self.state, self.closed_at = state, at


class ListedHour(models.Model):
    """What of an open listing is still for sale in one hour; sold out hours have no row."""

    listing = models.ForeignKey(Listing, models.CASCADE, related_name="hours")
    offer = models.ForeignKey("marketplace.Offer", models.CASCADE, related_name="+")
    hour = models.DateTimeField()
    gpus = models.PositiveIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["listing", "hour"], name="listed_hour_once_per_listing"),
            models.CheckConstraint(
                condition=Q(gpus__gte=1, hour=to_the("hour", "hour")), name="listed_hour_sells_something"
            ),
        ]
        indexes = [models.Index(fields=["offer", "hour"], name="listed_hour_by_offer")]

    def __str__(self) -> str:
        return f"{self.gpus} GPUs of {self.listing} at {self.hour:%Y-%m-%d %H}"


class Trade(models.Model):
    """An order that was filled at once and in whole: from listings, and from the offer where that was cheaper."""

    public_id = PublicIdField(prefix="trd")
    offer = models.ForeignKey("marketplace.Offer", models.PROTECT, related_name="trades")
    buyer = models.ForeignKey("marketplace.Organization", models.PROTECT, related_name="+")
    reservation = models.ForeignKey("marketplace.Reservation", models.PROTECT, related_name="trades")
    currency = models.CharField(max_length=3)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    gpus = models.PositiveIntegerField()
    limit_micros = models.BigIntegerField(help_text="the most that a GPU-hour might cost")
    total_micros = models.BigIntegerField()
    at = models.DateTimeField()

    def __str__(self) -> str:
        return self.public_id


class TradeLeg(models.Model):
    """What a trade took from one source at one price; `listing` is null where that was the offer itself."""

    trade = models.ForeignKey(Trade, models.CASCADE, related_name="legs")
    listing = models.ForeignKey(Listing, models.PROTECT, null=True, related_name="legs")
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    gpus = models.PositiveIntegerField()
    price_micros = models.BigIntegerField(help_text="for a GPU-hour")
    fee_micros = models.BigIntegerField(default=0, help_text="what the platform kept")

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(gpus__gte=1, price_micros__gte=1, fee_micros__gte=0, starts_at__lt=F("ends_at")),
                name="trade_leg_moves_something",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.gpus} GPUs from {self.starts_at:%Y-%m-%d %H}"


class LendingSpell(models.Model):
    """From when to when a reservation lent what stood idle; without an end it lends now."""

    reservation = models.ForeignKey("marketplace.Reservation", models.CASCADE, related_name="lending_spells")
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["reservation"], condition=Q(ends_at=None), name="lending_once_at_a_time"),
            models.CheckConstraint(
                condition=Q(ends_at=None) | Q(ends_at__gte=F("starts_at")), name="lending_ends_later"
            ),
        ]
        indexes = [models.Index(fields=["ends_at"], name="lending_by_end")]

    def __str__(self) -> str:
        return f"{self.reservation} lent from {self.starts_at:%Y-%m-%d %H:%M:%S}"


class LendingShare(models.Model):
    """What one charge of spot paid to whoever had lent the GPUs. Once for each charge and reservation."""

    public_id = PublicIdField(prefix="shr")
    reservation = models.ForeignKey("marketplace.Reservation", models.PROTECT, related_name="shares")
    cause = models.CharField(max_length=120, help_text="the charge that it is a share of")
    amount_micros = models.BigIntegerField()
    at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["cause", "reservation"], name="lending_shared_once_per_charge")]

    def __str__(self) -> str:
        return f"{self.amount_micros} micros for {self.reservation}"
