"""What a capacity manager may type about suppliers."""

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from billing.models import SupplierAdjustment
from marketplace.console.forms import (
    CURRENCIES,
    ConsoleForm,
    MoneyField,
    PercentField,
    ReasonForm,
    key_field,
    moment_field,
    reason_field,
)
from marketplace.console.suppliers import ALL_OFFERS, GIVE, TAKE
from marketplace.models import Organization
from marketplace.suppliers import earnings

DAYS_MAX = 365


class RateCardForm(ConsoleForm):
    """What a supplier gets."""

    offer = forms.ChoiceField(label=_("Offer"), required=False)
    share_bps = PercentField(label=_("Share of what customers pay, in percent"), help_text=_("Such as 70 or 72.5."))
    fixed_micros = MoneyField(
        label=_("Or fixed, per GPU-hour"),
        required=False,
        help_text=_("Empty: the share. With an amount, the share holds for use that is paid in another currency."),
    )
    fixed_currency = forms.ChoiceField(label=_("Currency of the fixed amount"), choices=CURRENCIES)
    reserve_bps = PercentField(label=_("Held back of that, in percent"), initial=10)
    reserve_days = forms.IntegerField(label=_("Held back for days"), min_value=0, max_value=DAYS_MAX, initial=30)
    sla_bps = PercentField(label=_("Borne of service credits, in percent"), initial=100)
    effective_from = moment_field(
        label=_("In force from"),
        required=False,
        help_text=_("In your time zone. Empty: from its approval on."),
    )
    key = key_field()

    def __init__(self, *args: Any, supplier: Organization, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        offers = [(one.public_id, one.name) for one in earnings.offers_of(supplier)]
        field = self.fields["offer"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [(ALL_OFFERS, _("All without a card of their own")), *offers]


class HoldForm(ReasonForm):
    """Why payouts are held back, or let go; the form says which, so that sending it twice changes nothing more."""

    is_held = forms.BooleanField(required=False, widget=forms.HiddenInput)


class UnpaidLimitForm(ReasonForm):
    """What work under a seller's contracts may cost the platform unpaid."""

    currency = forms.ChoiceField(label=_("Currency"), choices=CURRENCIES)
    unpaid_micros = MoneyField(
        label=_("At most, by the list"), required=False, help_text=_("0: nothing more starts. Empty: 1,000.")
    )
    field_order = ("currency", "unpaid_micros", "reason")


class AdjustmentForm(ConsoleForm):
    """What moves beside the share of use."""

    direction = forms.ChoiceField(
        label=_("What"), choices=[(GIVE, _("Give the supplier")), (TAKE, _("Take from the supplier"))]
    )
    amount_micros = MoneyField(label=_("Amount"))
    currency = forms.ChoiceField(label=_("Currency"), choices=CURRENCIES)
    kind = forms.ChoiceField(
        label=_("Kind"),
        choices=[one for one in SupplierAdjustment.Kind.choices if one[0] in {"refund", "other"}],
    )
    reason = reason_field(_("It stands on the supplier's statement."))
    key = key_field()
