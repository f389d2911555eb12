"""What a capacity manager may type about what customers owe."""

from decimal import Decimal
from uuid import uuid4

from django import forms
from django.utils.translation import gettext_lazy as _

from billing.models import CreditLine
from marketplace.console.forms import ConsoleForm, MoneyField, reason_field

LARGE_MAX = Decimal(100_000_000)


class CreditLineForm(ConsoleForm):
    """How much a customer may owe. The key makes a form that is sent twice count once."""

    limit_micros = MoneyField(
        label=_("Credit limit"), may_be_nothing=True, most=LARGE_MAX, help_text=_("0: the customer pays ahead.")
    )
    net_days = forms.IntegerField(
        label=_("Days to pay an invoice"), min_value=0, max_value=CreditLine.NET_DAYS_MAX, initial=30
    )
    reason = reason_field(_("Why this customer may pay afterwards."))
    key = forms.UUIDField(widget=forms.HiddenInput, initial=uuid4)
