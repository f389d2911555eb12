"""What a capacity manager may type about use that has ended."""

from django import forms
from django.utils.translation import gettext_lazy as _

from marketplace.console.forms import ConsoleForm, key_field, reason_field


class CorrectionForm(ConsoleForm):
    """When a span really ended, to the second."""

    ended_at = forms.DateTimeField(
        label=_("It ended at"),
        help_text=_("In your time zone."),
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "step": 1}, format="%Y-%m-%dT%H:%M:%S"),
    )
    reason = reason_field(_("The customer reads it on the credit note."))
    key = key_field()
