"""What a capacity manager may type about invoices."""

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from marketplace.console import invoices
from marketplace.console.forms import ConsoleForm, MoneyField, key_field, reason_field
from marketplace.models import Organization


class SellerForm(ConsoleForm):
    """Whose invoices these are."""

    seller = forms.ModelChoiceField(
        Organization.objects.none(),
        label=_("Seller"),
        to_field_name="public_id",
        help_text=_("Organizations that have billing details; an owner gives them in the portal."),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["seller"].queryset = invoices.possible_sellers()  # type: ignore[attr-defined]


class CreditNoteForm(ConsoleForm):
    """What is taken back of an invoice."""

    amount_micros = MoneyField(label=_("Amount before tax"))
    reason = reason_field(_("It stands on the credit note."))
    key = key_field()
