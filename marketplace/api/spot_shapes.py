"""The shapes of requests and answers about auctions and bids."""

from typing import Any

from rest_framework import serializers

from marketplace.api.order_shapes import RentInstance
from marketplace.api.price_shapes import Amount, Price
from marketplace.api.shapes import ActionAnswer, NamedRef, OfferRef, RiskAnswer, Shape, Text
from marketplace.money import typed_micros
from provisioning.models import Interruption, Phase

STATES = (
    "waiting", "unfunded", "excluded", "left_out", "won", "running", "notified", "interrupted", "resting", "ended",
)  # fmt: skip


class Micros(Text):
    """An amount as a decimal string, with six places at most; inside it is whole micros."""

    def to_internal_value(self, data: Any) -> int:  # type: ignore[override]
        micros = typed_micros(super().to_internal_value(data))
        if micros is None:
            raise serializers.ValidationError("Write an amount such as “1.25”: digits, and six places at most.")
        return micros


class PlaceBid(RentInstance):
    max_price = Micros(help_text="the most per GPU-hour, as a decimal string")


class ChangeBid(Shape):
    max_price = Micros(help_text="the most per GPU-hour from now on")
    expected_price = Micros(required=False, help_text="refuse where the bid is another one meanwhile")
    interruption = Text(
        max_length=32, required=False, help_text="call off this interruption, exactly once, or change nothing"
    )


class BidQuery(serializers.Serializer[Any]):
    project = serializers.CharField(max_length=32, required=False)
    offer = serializers.CharField(max_length=64, required=False, help_text="an offer's id or slug")
    instance = serializers.CharField(max_length=32, required=False)
    alive = serializers.BooleanField(required=False, default=False, help_text="without those whose instance ended")


class HistoryQuery(serializers.Serializer[Any]):
    since = serializers.DateTimeField(required=False, help_text="default: a day before `until`")
    until = serializers.DateTimeField(required=False, help_text="default: now")
    points = serializers.IntegerField(min_value=1, max_value=1000, default=96, help_text="stretches at most")


class InterruptionAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    run = serializers.IntegerField()
    reason = serializers.ChoiceField(choices=Interruption.Reason.choices)
    state = serializers.ChoiceField(choices=Interruption.State.choices)
    advised_at = serializers.DateTimeField(allow_null=True, help_text="when it was said that this may come")
    notice_at = serializers.DateTimeField(allow_null=True)
    deadline_at = serializers.DateTimeField(allow_null=True, help_text="never sooner")
    sigterm_at = serializers.DateTimeField(allow_null=True)
    min_notice_s = serializers.IntegerField()
    ended_at = serializers.DateTimeField(allow_null=True)
    credited = serializers.CharField(help_text="given back for it, as credit")
    message = serializers.CharField()


class BidInstance(NamedRef):
    phase = serializers.ChoiceField(choices=Phase.choices)


class BidActions(serializers.Serializer[Any]):
    change = ActionAnswer()
    withdraw = ActionAnswer()
    simulate_interruption = ActionAnswer()


class BidAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    instance = BidInstance()
    project = NamedRef()
    offer = OfferRef()
    gpus = serializers.IntegerField()
    max_price = Price()
    state = serializers.ChoiceField(choices=STATES)
    reason = serializers.CharField(allow_null=True, help_text="why it takes part in no auction")
    held = Amount(help_text="set aside for it now")
    revision = serializers.IntegerField()
    placed_at = serializers.DateTimeField()
    interruption = InterruptionAnswer(allow_null=True, help_text="planned or under way")
    risk = RiskAnswer(allow_null=True, help_text="the next auction may outbid it; no notice yet")
    actions = BidActions()


class BidRehearsal(serializers.Serializer[Any]):
    would_bid = serializers.BooleanField()
    offer = OfferRef()
    gpus = serializers.IntegerField()
    max_price = Price()
    hold = Amount(help_text="set aside while the bid stands")
    worst_hour = Amount(help_text="the most that an hour could cost")
    min_notice_s = serializers.IntegerField()


class DepthStep(serializers.Serializer[Any]):
    price = serializers.CharField()
    gpus = serializers.IntegerField(help_text="asked for at this price or more")


class AuctionRef(serializers.Serializer[Any]):
    id = serializers.CharField()
    tick_at = serializers.DateTimeField()
    book_sha256 = serializers.CharField()


class OfferRiskAnswer(serializers.Serializer[Any]):
    level = serializers.ChoiceField(
        choices=["low", "moderate", "high"], help_text="moderate from 1 % an hour, high from 5 %"
    )
    percent_per_hour = serializers.CharField(help_text="interruptions / instance_hours, in percent, two places")
    interruptions = serializers.IntegerField(help_text="by the market: outbid, capacity needed, recalled by a holder")
    instance_hours = serializers.IntegerField(help_text="that instances ran by auction, rounded down")
    since = serializers.DateTimeField(help_text="a week before `as_of`: both are counted from then on")


class SpotAnswer(serializers.Serializer[Any]):
    offer = OfferRef()
    enabled = serializers.BooleanField(help_text="whether bids are taken")
    price = Price(help_text="what is charged now")
    cleared_price = Price(allow_null=True, help_text="what the last auction gave, before it was smoothed")
    reserve = Price()
    highest_bid_allowed = Price(allow_null=True, help_text="today's price on demand")
    step = Amount(help_text="bids are multiples of this")
    interval_s = serializers.IntegerField()
    min_notice_s = serializers.IntegerField()
    next_auction_at = serializers.DateTimeField(allow_null=True)
    capacity_gpus = serializers.IntegerField()
    cap_gpus = serializers.IntegerField(
        allow_null=True, help_text="the most that one organization would win of so many; null: no limit"
    )
    allocated_gpus = serializers.IntegerField()
    demanded_gpus = serializers.IntegerField()
    depth = DepthStep(many=True)
    auction = AuctionRef(allow_null=True)
    interruption_risk = OfferRiskAnswer(allow_null=True, help_text="null where nothing ran by auction in that week")
    as_of = serializers.DateTimeField()


class BucketAnswer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    until = serializers.DateTimeField()
    min = serializers.CharField()
    max = serializers.CharField()
    last = serializers.CharField()
    reserve = serializers.CharField()
    capacity_gpus = serializers.IntegerField()
    auctions = serializers.IntegerField()


class HistoryAnswer(serializers.Serializer[Any]):
    currency = serializers.CharField()
    data = BucketAnswer(many=True)  # type: ignore[assignment]


class AuctionAnswer(serializers.Serializer[Any]):
    id = serializers.CharField()
    tick_at = serializers.DateTimeField()
    held_at = serializers.DateTimeField()
    capacity_gpus = serializers.IntegerField()
    reserve = Price()
    cleared_price = Price()
    price = Price(help_text="what is charged")
    bids = serializers.IntegerField()
    eligible = serializers.IntegerField(help_text="bids of the reserve or more")
    winners = serializers.IntegerField()
    passed_over = serializers.IntegerField(help_text="lost for their size alone although they ranked before a winner")
    demanded_gpus = serializers.IntegerField()
    allocated_gpus = serializers.IntegerField()
    demand = DepthStep(many=True)
    book_sha256 = serializers.CharField()
    book_deleted_at = serializers.DateTimeField(
        allow_null=True, help_text="when its bids were deleted, your own among them; from then on none can be shown"
    )


class OwnBidAnswer(serializers.Serializer[Any]):
    bid = serializers.CharField()
    gpus = serializers.IntegerField()
    max_price = Price()
    incumbent = serializers.BooleanField(help_text="held GPUs already, and ranked with the bonus for that")
    won = serializers.BooleanField()


class AuctionDetailAnswer(AuctionAnswer):
    own_bids = OwnBidAnswer(many=True)
