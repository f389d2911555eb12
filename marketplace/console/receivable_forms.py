"""What a capacity manager may type about what customers owe."""

from decimal import Decimal
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from billing.models import BankTransfer, CreditLine, DunningStep, Invoice
from marketplace.console.forms import ConsoleForm, MoneyField, key_field, reason_field
from marketplace.models import Organization

LARGE_MAX = Decimal(100_000_000)


class CreditLineForm(ConsoleForm):
    """How much a customer may owe."""

    limit_micros = MoneyField(
        label=_("Credit limit"), may_be_nothing=True, most=LARGE_MAX, help_text=_("0: the customer pays ahead.")
    )
    net_days = forms.IntegerField(
        label=_("Days to pay an invoice"), min_value=0, max_value=CreditLine.NET_DAYS_MAX, initial=30
    )
    reason = reason_field(_("Why this customer may pay afterwards."))
    key = key_field()


class BankTransferForm(ConsoleForm):
    """A line of the bank's statement."""

    direction = forms.ChoiceField(label=_("Direction"), choices=BankTransfer.Direction.choices)
    amount_micros = MoneyField(label=_("Amount"), most=LARGE_MAX)
    bank_reference = forms.CharField(
        label=_("The bank's number of the line"), max_length=64, help_text=_("Each counts once.")
    )
    value_on = forms.DateField(label=_("Value date"), widget=forms.DateInput(attrs={"type": "date"}))
    invoice = forms.ModelChoiceField(
        Invoice.objects.none(),
        label=_("For the invoice"),
        to_field_name="public_id",
        required=False,
        help_text=_("Empty: what is owed for longest is paid, the rest is cash."),
    )
    note = forms.CharField(label=_("Note"), max_length=200, required=False)
    key = key_field()

    def __init__(self, *args: Any, organization: Organization, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        found = Invoice.objects.filter(organization=organization, kind="invoice", due_micros__gt=0).order_by("-pk")
        self.fields["invoice"].queryset = found  # type: ignore[attr-defined]


class DaysField(forms.CharField):
    """Whole days from the due day, as `-7, 0, 3`; its value is a list of them."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(required=False, max_length=100, **kwargs)

    def clean(self, value: Any) -> list[int]:
        typed = super().clean(value).replace("−", "-")
        try:
            return [int(day) for day in typed.replace(",", " ").split()]
        except ValueError as error:
            raise forms.ValidationError(_("Write whole days such as -7, 0, 3.")) from error


class DunningForm(ConsoleForm):
    """For each action the days on which it is done, from the day on which an invoice is due."""

    reason = reason_field(_("Why the table changes."))
    key = key_field()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for action in reversed(DunningStep.Action):
            field = DaysField(label=action.label.capitalize())
            field.widget.attrs |= {"class": "form-control", "autocomplete": "off"}
            self.fields[action.value] = field
        self.fields[DunningStep.Action.CHARGE].help_text = _("Days from the due day; before it with a minus: -7, 0, 3.")
        self.order_fields([*DunningStep.Action.values, "reason", "key"])


class AnswerForm(ConsoleForm):
    """What a customer reads about a dispute."""

    answer = forms.CharField(
        label=_("Answer"),
        max_length=500,
        help_text=_("The customer reads it."),
        widget=forms.Textarea(attrs={"rows": 3}),
    )
