"""The shapes of cards, payments and automatic top-ups. Money is decimal strings."""

from typing import Any

from django.utils.translation import gettext_lazy as _
from rest_framework import serializers

from billing.models import Payment
from marketplace.api.quota_shapes import Money
from marketplace.api.shapes import NamedRef, Shape, Text
from marketplace.money import typed_micros


class CardAnswer(serializers.Serializer[Any]):
    """What a card is called; its number is known to the card processor alone."""

    id = serializers.CharField()
    brand = serializers.CharField()
    last4 = serializers.CharField()
    exp_month = serializers.IntegerField()
    exp_year = serializers.IntegerField()
    default = serializers.BooleanField(help_text="charged where no card is named")


class PlainMoney(Money):
    """Money as people write it; `1e3` is not quietly taken for a thousand."""

    default_error_messages = {
        "invalid": _('Write an amount as a string without a sign, such as "1234.50", with at most six places.')
    }

    def to_internal_value(self, data: Any) -> Any:
        micros = typed_micros(data) if isinstance(data, str) else None
        if micros is None:
            self.fail("invalid")
        return micros


class TopUp(Shape):
    amount = PlainMoney(help_text="in the organization's currency, whole minor units")
    currency = Text(
        max_length=3, required=False, allow_blank=True, default="", help_text="refused if it is not the organization's"
    )
    card = Text(
        max_length=32,
        required=False,
        allow_blank=True,
        default="",
        help_text="default: the default card; new: one typed at `action_url`",
    )
    organization = Text(max_length=32, required=False, help_text="default: the token's own")


class Failure(serializers.Serializer[Any]):
    code = serializers.CharField(help_text="the card processor's word, such as insufficient_funds")
    text = serializers.CharField()


class PaymentAnswer(serializers.Serializer[Any]):
    """`succeeded`, `failed` and `cancelled` are final. With `needs_action` a person has to open `action_url`."""

    id = serializers.CharField()
    organization = NamedRef()
    purpose = serializers.ChoiceField(choices=Payment.Purpose.choices)
    reference = serializers.CharField(help_text="what it pays for, such as an invoice; may be empty")
    amount = serializers.CharField()
    currency = serializers.CharField()
    card = CardAnswer(allow_null=True, help_text="null: one typed on the processor's page")
    state = serializers.ChoiceField(choices=Payment.State.choices)
    failure = Failure(allow_null=True)
    action_url = serializers.CharField(allow_null=True, help_text="where a signed-in person finishes it in a browser")
    created_at = serializers.DateTimeField()
    finished_at = serializers.DateTimeField(allow_null=True)


class SetAutomaticTopUp(Shape):
    threshold = PlainMoney(help_text="top up when less than this is free")
    amount = PlainMoney()
    monthly_ceiling = PlainMoney(help_text="for a calendar month, UTC")


class AutomaticTopUpAnswer(serializers.Serializer[Any]):
    on = serializers.BooleanField()
    threshold = serializers.CharField(allow_null=True)
    amount = serializers.CharField(allow_null=True)
    monthly_ceiling = serializers.CharField(allow_null=True)
    spent_this_month = serializers.CharField()
    paused_because = serializers.CharField(help_text="empty unless a card failed; set it again to go on")
    currency = serializers.CharField()
