"""What a capacity manager may type about price lists and commitments, but for the table of a draft."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from billing.months import month_of, next_month
from marketplace.console.forms import (
    CURRENCIES,
    INTEGER_MAX,
    ConsoleForm,
    MoneyField,
    PercentField,
    key_field,
    moment_field,
    reason_field,
)
from marketplace.models import Offer

MONTHS_AHEAD = 12


class DraftForm(ConsoleForm):
    """In which currency a list is drafted."""

    currency = forms.ChoiceField(label=_("Currency"), choices=CURRENCIES)
    key = key_field()


def drops_tiers_field() -> forms.BooleanField:
    """Return a field that says that one price may take the place of tiers and a minimum."""
    return forms.BooleanField(
        label=_("Drop tiers and minimum"),
        required=False,
        help_text=_("Only where the price in force has them: one price takes their place."),
    )


class PriceForm(DraftForm):
    """Another price for what an offer sells."""

    sku = forms.ChoiceField(label=_("Of what"))
    amount_micros = MoneyField(label=_("Price per GPU-hour"), help_text=_("Such as 2.49; up to six decimal places."))
    drops_tiers = drops_tiers_field()
    field_order = ("sku", "currency", "amount_micros", "drops_tiers")

    def __init__(self, *args: Any, offer: Offer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["sku"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [(offer.sku, _("GPUs on demand")), (offer.reserved_sku, _("GPUs in blocks"))]


class StoragePriceForm(DraftForm):
    """Another price for a GiB-hour of a site's storage."""

    amount_micros = MoneyField(label=_("Price per GiB-hour"), help_text=_("Such as 0.0001; up to six decimal places."))
    drops_tiers = drops_tiers_field()


class RestoreForm(ConsoleForm):
    """A button that opens a draft once."""

    key = key_field()


class ScheduleForm(ConsoleForm):
    """When a list begins."""

    effective_from = moment_field(
        label=_("In force from"),
        help_text=_("In your time zone, and still to come."),
    )


class WithdrawalForm(ConsoleForm):
    """Why a scheduled list is not to come into force."""

    reason = reason_field(_("Why it is not to come into force."))
    key = key_field()


class CommitmentForm(ConsoleForm):
    """What an organization promises to use."""

    kind = forms.ChoiceField(
        label=_("Promise"), choices=[("spend", _("An amount of money")), ("hours", _("Hours of one thing"))]
    )
    skus = forms.MultipleChoiceField(label=_("Of what"), widget=forms.CheckboxSelectMultiple)
    spend_micros = MoneyField(label=_("Amount"), required=False, help_text=_("Of a promise of money."))
    hours = forms.IntegerField(
        label=_("Hours"), min_value=1, max_value=INTEGER_MAX, required=False, help_text=_("Of a promise of hours.")
    )
    discount_bps = PercentField(
        label=_("Discount (%)"),
        most=Decimal("99.99"),
        help_text=_("Off the list as it is now; no later list changes it."),
    )
    starts_at = forms.TypedChoiceField(label=_("First month (UTC)"), coerce=datetime.fromisoformat)
    months = forms.IntegerField(label=_("Months"), min_value=1, max_value=60, initial=12)
    note = forms.CharField(label=_("Contract"), max_length=200, help_text=_("Where it was agreed."))
    key = key_field()

    def __init__(self, *args: Any, skus: list[tuple[str, str]], at: datetime, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        months = []
        month = next_month(month_of(at))
        for _number in range(MONTHS_AHEAD):
            months.append((month.isoformat(), f"{month:%Y-%m}"))
            month = next_month(month)
        for name, choices in (("skus", skus), ("starts_at", months)):
            field = self.fields[name]
            assert isinstance(field, forms.ChoiceField)
            field.choices = choices
        self.fields["skus"].widget.attrs["class"] = "form-check-input"
