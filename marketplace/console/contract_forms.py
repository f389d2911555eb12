"""What a capacity manager types about contracts: a title, for whom, and whole terms; and decisions of disputes."""

import json
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from marketplace.console.forms import ConsoleForm, PercentField
from marketplace.contracts import terms as written
from marketplace.models import Organization

TERMS_LENGTH_MAX = 20_000


class TermsField(forms.JSONField):
    """Whole terms as JSON, written out over several lines."""

    def __init__(self, **kwargs: Any) -> None:
        widget = forms.Textarea(attrs={"rows": 28, "spellcheck": "false", "class": "mono"})
        super().__init__(widget=widget, **kwargs)

    def prepare_value(self, value: Any) -> Any:
        return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)

    def to_python(self, value: Any) -> Any:
        if isinstance(value, str) and len(value) > TERMS_LENGTH_MAX:
            raise forms.ValidationError(_("These terms are too long."))
        return super().to_python(value)


class TermsForm(ConsoleForm):
    """The terms of the next version."""

    terms = TermsField(
        label=_("Terms"), help_text=_("The closed schema gpumarket.terms/3; write null where one does not apply.")
    )

    def add_error(self, field: Any, error: Any) -> None:
        """Let the place of a fault within the terms stand before it, at the field that has them."""
        super().add_error(field if field is None or field in self.fields else "terms", error)


class ContractForm(TermsForm):
    """A new contract."""

    title = forms.CharField(label=_("Title"), max_length=100, help_text=_("As customers read it in the catalogue."))
    seller = forms.ModelChoiceField(
        Organization.objects.none(), label=_("Seller"), to_field_name="public_id",
        help_text=_("Its customers pay the platform, which pays it by the shares."),
    )  # fmt: skip
    buyer = forms.CharField(
        label=_("For one customer"), max_length=32, required=False,
        help_text=_("The id of an organization, such as org_…; empty: for everybody, in the catalogue."),
    )  # fmt: skip
    field_order = ("title", "seller", "buyer", "terms")

    def __init__(self, *args: Any, sellers: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["seller"]
        assert isinstance(field, forms.ModelChoiceField)
        field.queryset = sellers


class DecisionForm(ConsoleForm):
    """What of a disputed claim is to be paid, and why."""

    due_bps = PercentField(label=_("Percent of the price that is paid"), help_text=_("0: nothing; 100: all of it."))
    note = forms.CharField(
        label=_("Why"), max_length=2000, widget=forms.Textarea(attrs={"rows": 4}), help_text=_("Both sides read it.")
    )


TEMPLATE: dict[str, Any] = {
    "schema": written.SCHEMA,
    "kind": "per_task",
    "currency": "USD",
    "counts": "A task counts once its command ended with exit code 0 and all its declared outputs are there.",
    "unit": {"name": "task", "per": 1, "price_micros": 500_000, "most": 1},
    "measured": None,
    "verifier": {"kind": "outputs"},
    "evidence": ["exit_code", "outputs", "gpu_uuids"],
    "acceptance": {"window_s": 86_400, "on_silence": "accept"},
    "disputes": {
        "window_s": 86_400, "decided_by": "operator", "arbiter": None, "decide_within_s": 604_800,
        "if_undecided": "refund",
    },
    "retries": 1,
    "work": {
        "offers": None, "gpus": 8, "seconds": 3600, "attempts": 3, "attempt_micros": 40_000_000,
        "unpaid_micros": 200_000_000,
    },
    "deadline": None,
    "cap": None,
    "floor": None,
    "clawback_s": 604_800,
    "shares": [{"to": "seller", "bps": 8000}, {"to": "platform", "bps": 2000}],
    "guarantee": None,
    "revenue": None,
}  # fmt: skip
