"""The shapes of requests and answers about blocks, quotes, reservations and their resale."""

from typing import Any

from rest_framework import serializers

from marketplace.api.price_shapes import Amount
from marketplace.api.shapes import ActionAnswer, Count, NamedRef, OfferRef, Shape, Text
from marketplace.models import Listing, Quote, ReservationState

MONEY = r"\d{1,7}(\.\d{1,6})?"


class Moment(serializers.DateTimeField):
    """A time with its zone, as RFC 3339 text."""

    def to_internal_value(self, value: Any) -> Any:
        if not isinstance(value, str) or len(value) > 40:
            self.fail("invalid", format="RFC 3339")
        return super().to_internal_value(value)


class Decimal(serializers.RegexField):
    """An amount of money as a decimal string with up to six places, such as `2.49`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(rf"\A{MONEY}\Z", max_length=20, **options)


class CreateQuote(Shape):
    kind = serializers.ChoiceField(choices=Quote.Kind.choices, default=Quote.Kind.PURCHASE)
    project = Text(max_length=32, required=False, help_text="of a purchase; default: the token's or the only one")
    offer = Text(max_length=64, required=False, help_text="of a purchase: an offer's id or slug")
    gpus = Count(min_value=0, max_value=1_000_000, required=False, help_text="of a purchase, in every hour")
    starts_at = Moment(required=False, help_text="of a purchase: a full UTC hour")
    ends_at = Moment(required=False, help_text="of a purchase or extension: a full UTC hour")
    reservation = Text(max_length=32, required=False, help_text="of an extension or cancellation")


class UseQuote(Shape):
    quote = Text(max_length=32)


class ChangeReservation(Shape):
    is_lent = serializers.BooleanField(help_text="lend what stands idle to spot, with recall")


class ReservationQuery(serializers.Serializer[Any]):
    project = serializers.CharField(max_length=32, required=False)
    state = serializers.ChoiceField(choices=ReservationState.choices, required=False)


class WindowQuery(serializers.Serializer[Any]):
    gpus = serializers.IntegerField(min_value=1, max_value=1_000_000)
    hours = serializers.IntegerField(min_value=1, max_value=100_000)
    before = serializers.DateTimeField(help_text="it has to end by then")
    after = serializers.DateTimeField(required=False, help_text="it may start from then on; default: the next hour")
    gpu_model = serializers.CharField(max_length=40, required=False)
    country = serializers.CharField(max_length=2, required=False)
    offer = serializers.CharField(max_length=64, required=False)
    project = serializers.CharField(
        max_length=32, required=False, help_text="whose policies count; default: any of yours"
    )


class CalendarQuery(serializers.Serializer[Any]):
    starts_at = serializers.DateTimeField(required=False, help_text="default: this hour")
    hours = serializers.IntegerField(min_value=1, max_value=24 * 31, default=24 * 7)
    project = serializers.CharField(
        max_length=32, required=False, help_text="whose policies count; default: any of yours"
    )


class AsksQuery(serializers.Serializer[Any]):
    starts_at = serializers.DateTimeField(required=False, help_text="default: now")
    ends_at = serializers.DateTimeField(required=False)


class CreateListing(Shape):
    reservation = Text(max_length=32)
    starts_at = Moment()
    ends_at = Moment()
    gpus = Count(min_value=0, max_value=1_000_000)
    ask = Decimal(help_text="for a GPU-hour, in the reservation's currency")
    min_gpus = Count(min_value=0, max_value=1_000_000, default=1, help_text="the smallest order that it serves")
    min_hours = Count(min_value=0, max_value=100_000, default=1, help_text="the shortest order that it serves")


class ListingQuery(serializers.Serializer[Any]):
    state = serializers.ChoiceField(choices=Listing.State.choices, required=False)


class CreateTrade(Shape):
    offer = Text(max_length=64)
    project = Text(max_length=32, required=False, help_text="default: the token's or the only one")
    gpus = Count(min_value=1, max_value=1_000_000)
    starts_at = Moment()
    ends_at = Moment()
    limit = Decimal(help_text="the most that a GPU-hour may cost")


class CancellationCost(serializers.Serializer[Any]):
    until = serializers.DateTimeField()
    kept_percent = serializers.CharField()
    kept = Amount()
    refund = Amount()


class TermsAnswer(serializers.Serializer[Any]):
    lock_minutes = serializers.IntegerField(help_text="before the start: nothing is changed from then on")
    notice_minutes = serializers.IntegerField(help_text="before the end: instances inside are told")
    drain_minutes = serializers.IntegerField(help_text="before the end: instances inside are asked to stop")
    resale_fee_percent = serializers.CharField()
    resale_cutoff_minutes = serializers.IntegerField(help_text="before an hour: it can be sold until then")
    lend_share_percent = serializers.CharField(help_text="of what spot pays for GPUs that are lent")


class QuoteAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    kind = serializers.ChoiceField(choices=Quote.Kind.choices)
    project = NamedRef()
    offer = OfferRef()
    reservation = serializers.CharField(allow_null=True)
    gpus = serializers.IntegerField()
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    hours = serializers.IntegerField()
    discount_percent = serializers.CharField()
    list_price = Amount(help_text="of a GPU-hour, without the discount")
    price = Amount(help_text="of a GPU-hour")
    total = Amount(help_text="what is paid; of a cancellation, what is kept")
    refund = Amount(help_text="what a cancellation gives back")
    terms = TermsAnswer()
    cancellation_costs = CancellationCost(many=True)
    created_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField()
    used_at = serializers.DateTimeField(allow_null=True)


class StripAnswer(serializers.Serializer[Any]):
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    gpus = serializers.IntegerField()


class ShortfallAnswer(serializers.Serializer[Any]):
    hour = serializers.DateTimeField()
    gpus = serializers.IntegerField()
    refund = Amount()
    message = serializers.CharField()


class ReservationActions(serializers.Serializer[Any]):
    extend = ActionAnswer()
    cancel = ActionAnswer()
    resell = ActionAnswer()
    lend = ActionAnswer()


class ReservationAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    project = NamedRef()
    offer = OfferRef()
    state = serializers.ChoiceField(choices=ReservationState.choices)
    state_since = serializers.DateTimeField()
    message = serializers.CharField()
    gpus = serializers.IntegerField(help_text="the most in any of its hours")
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    locks_at = serializers.DateTimeField()
    steps = StripAnswer(many=True, help_text="how many GPUs it holds when")
    used_gpus = serializers.IntegerField(help_text="by instances in it now")
    missing_gpus = serializers.IntegerField(help_text="that cannot be had now; they are not paid for")
    is_lent = serializers.BooleanField()
    lent = Amount(help_text="what lending has earned so far")
    paid = Amount()
    terms = TermsAnswer()
    cancellation_costs = CancellationCost(many=True)
    shortfalls = ShortfallAnswer(many=True)
    actions = ReservationActions()
    created_at = serializers.DateTimeField()


class ReservationEventAnswer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    old_state = serializers.CharField(allow_blank=True)
    new_state = serializers.CharField()
    message = serializers.CharField(allow_blank=True)


class WindowAnswer(serializers.Serializer[Any]):
    offer = OfferRef()
    gpus = serializers.IntegerField()
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    total = Amount()
    dearest = Amount(help_text="the dearest GPU-hour of it: the limit of an order for it")
    resold_gpu_hours = serializers.IntegerField()
    buy_by = serializers.ChoiceField(choices=["quote", "trade"], help_text="where it can be bought at this price")


class WindowsAnswer(serializers.Serializer[Any]):
    data = WindowAnswer(many=True)  # type: ignore[assignment]
    as_of = serializers.DateTimeField()


class HourAnswer(serializers.Serializer[Any]):
    starts_at = serializers.DateTimeField()
    free_gpus = serializers.IntegerField()


class BlockTermsAnswer(TermsAnswer):
    min_gpus = serializers.IntegerField()
    max_gpus = serializers.IntegerField()
    min_hours = serializers.IntegerField()
    max_hours = serializers.IntegerField()
    horizon_hours = serializers.IntegerField()
    ask_step = serializers.CharField()


class CalendarAnswer(serializers.Serializer[Any]):
    offer = OfferRef()
    gpus = serializers.IntegerField()
    terms = BlockTermsAnswer()
    hours = HourAnswer(many=True)
    excluded = serializers.BooleanField(help_text="policies exclude it for every project that asks: nothing is free")
    as_of = serializers.DateTimeField()


class AskAnswer(serializers.Serializer[Any]):
    listing = serializers.CharField()
    ask = Amount()
    min_gpus = serializers.IntegerField()
    min_hours = serializers.IntegerField()
    steps = StripAnswer(many=True)
    is_mine = serializers.BooleanField()


class AsksAnswer(serializers.Serializer[Any]):
    data = AskAnswer(many=True)  # type: ignore[assignment]
    as_of = serializers.DateTimeField()


class ListingAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    reservation = serializers.CharField()
    offer = OfferRef()
    state = serializers.ChoiceField(choices=Listing.State.choices)
    ask = Amount()
    gpus = serializers.IntegerField()
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    min_gpus = serializers.IntegerField()
    min_hours = serializers.IntegerField()
    left = StripAnswer(many=True, help_text="what is still for sale")
    sold_gpu_hours = serializers.IntegerField()
    proceeds = Amount(help_text="what its sales have paid so far, without the fee")
    created_at = serializers.DateTimeField()
    closed_at = serializers.DateTimeField(allow_null=True)


class TradeLegAnswer(serializers.Serializer[Any]):
    source = serializers.ChoiceField(choices=["listing", "offer"])  # type: ignore[assignment]
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    gpus = serializers.IntegerField()
    price = Amount()


class TradeAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    offer = OfferRef()
    reservation = serializers.CharField()
    gpus = serializers.IntegerField()
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    limit = Amount()
    total = Amount()
    legs = TradeLegAnswer(many=True)
    at = serializers.DateTimeField()


class FillAnswer(serializers.Serializer[Any]):
    would_buy = serializers.BooleanField()
    offer = OfferRef()
    gpus = serializers.IntegerField()
    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField()
    total = Amount()
    dearest = Amount(help_text="the lowest limit with which it is filled")
    legs = TradeLegAnswer(many=True)
