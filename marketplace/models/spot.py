"""What is sold by auction: the terms of an offer, bids, and every auction with its book."""

from django.db import models
from django.db.models import Q
from django.utils import timezone

from billing.public_ids import PublicIdField


class SpotTerms(models.Model):
    """How an offer is sold by auction. Prices in micros of `currency` per GPU-hour, each a multiple of the grid."""

    offer = models.OneToOneField("marketplace.Offer", models.CASCADE, primary_key=True, related_name="spot_terms")
    is_enabled = models.BooleanField(default=True)
    currency = models.CharField(max_length=3, default="USD")
    reserve_micros = models.BigIntegerField(help_text="the least that a GPU-hour costs")
    grid_micros = models.BigIntegerField(default=10_000, help_text="bids are multiples of this")
    interval_s = models.PositiveIntegerField(default=300)
    min_notice_s = models.PositiveIntegerField(default=120, help_text="binding: nobody is interrupted sooner")
    hysteresis_bp = models.PositiveIntegerField(
        default=1000, help_text="basis points by which whoever runs must be outbid"
    )
    rise_bp = models.PositiveIntegerField(
        default=2000, help_text="basis points by which what is charged rises at most, from one auction to the next"
    )
    buffer_gpus = models.PositiveIntegerField(default=0, help_text="GPUs that are held back")
    cap_bp = models.PositiveIntegerField(
        default=0, help_text="basis points of the GPUs of an auction that one organization wins at most; 0: no limit"
    )
    next_tick_at = models.DateTimeField(null=True, help_text="when the next auction is due; none: nothing is sold")
    changed_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(interval_s__gte=1, grid_micros__gte=1, reserve_micros__gte=1, rise_bp__gte=1),
                name="spot_terms_make_sense",
            ),
            models.CheckConstraint(condition=Q(currency__regex="^[A-Z]{3}$"), name="spot_currency_is_an_iso_code"),
            models.CheckConstraint(condition=Q(cap_bp__lte=10_000), name="spot_cap_is_no_more_than_all"),
        ]
        indexes = [
            models.Index(fields=["next_tick_at"], condition=Q(next_tick_at__isnull=False), name="spot_terms_due")
        ]

    def __str__(self) -> str:
        return f"spot terms of {self.offer}"


class Bid(models.Model):
    """The most that a project pays for the GPUs of one instance, all or none. Where it stands, its instance says."""

    public_id = PublicIdField(prefix="bid")
    instance = models.OneToOneField("provisioning.Instance", models.PROTECT, related_name="bid")
    project = models.ForeignKey("marketplace.Project", models.PROTECT, related_name="bids")
    offer = models.ForeignKey("marketplace.Offer", models.PROTECT, related_name="bids")
    price_micros = models.BigIntegerField(help_text="the most, per GPU-hour")
    revision = models.PositiveIntegerField(default=1, help_text="how often its price was set")
    placed_at = models.DateTimeField(help_text="when it was first placed: ties go to the earlier one")
    left_out_at = models.DateTimeField(
        null=True, help_text="since when it takes part in no auction, having won and found no place; none: it does"
    )

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(price_micros__gt=0), name="bid_is_for_something")]
        indexes = [
            models.Index(fields=["offer"], condition=Q(left_out_at__isnull=False), name="bids_that_found_no_place")
        ]

    def __str__(self) -> str:
        return f"{self.public_id}: {self.price_micros} micros"


class Auction(models.Model):
    """One auction of one offer and tick: what was published, for good, and for a while the book that gives it."""

    public_id = PublicIdField(prefix="auc")
    offer = models.ForeignKey("marketplace.Offer", models.CASCADE, related_name="auctions")
    tick_at = models.DateTimeField(help_text="the time for which it was due")
    held_at = models.DateTimeField()
    currency = models.CharField(max_length=3)
    capacity_gpus = models.PositiveIntegerField()
    reserve_micros = models.BigIntegerField()
    price_micros = models.BigIntegerField(help_text="what the auction gave")
    charged_micros = models.BigIntegerField(help_text="what is paid: the price, smoothed")
    published = models.TextField(help_text="canonical JSON")
    book = models.BinaryField(help_text="sealed bids and rules, compressed; empty once they are deleted")
    book_sha256 = models.CharField(max_length=64)
    book_deleted_at = models.DateTimeField(null=True, help_text="when its bids were forgotten; none: they are here")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["offer", "tick_at"], name="auction_once_per_offer_and_tick"),
            models.CheckConstraint(
                condition=Q(charged_micros__gte=models.F("reserve_micros"))
                & Q(charged_micros__lte=models.F("price_micros")),
                name="auction_charges_between_reserve_and_price",
            ),
            models.CheckConstraint(
                condition=Q(book=b"") ^ Q(book_deleted_at=None), name="auction_has_its_book_until_that_is_deleted"
            ),
        ]
        indexes = [
            models.Index(fields=["held_at"], condition=Q(book_deleted_at=None), name="auction_books_that_are_kept")
        ]

    def __str__(self) -> str:
        return f"{self.public_id} of {self.offer} at {self.tick_at:%Y-%m-%d %H:%M:%S}"


class Allocation(models.Model):
    """A bid that won an auction, with the GPUs that it won."""

    auction = models.ForeignKey(Auction, models.CASCADE, related_name="allocations", db_index=False)
    bid = models.ForeignKey(Bid, models.CASCADE, related_name="allocations")
    gpus = models.PositiveIntegerField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["auction", "bid"], name="allocation_once_per_auction_and_bid")]

    def __str__(self) -> str:
        return f"{self.gpus} GPUs of {self.auction}"
