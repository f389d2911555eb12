"""What a capacity manager may type about payments."""

from uuid import uuid4

from django import forms
from django.utils.translation import gettext_lazy as _

from marketplace.console.forms import ConsoleForm, MoneyField, reason_field


class RefundForm(ConsoleForm):
    """What goes back to a card. The key makes a form that is sent twice count once."""

    amount_micros = MoneyField(label=_("Amount"))
    reason = reason_field(_("The other person decides by it."))
    key = forms.UUIDField(widget=forms.HiddenInput, initial=uuid4)
