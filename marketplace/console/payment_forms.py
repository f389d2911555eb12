"""What a capacity manager may type about payments."""

from django.utils.translation import gettext_lazy as _

from marketplace.console.forms import ConsoleForm, MoneyField, key_field, reason_field


class RefundForm(ConsoleForm):
    """What goes back to a card."""

    amount_micros = MoneyField(label=_("Amount"))
    reason = reason_field(_("The other person decides by it."))
    key = key_field()
