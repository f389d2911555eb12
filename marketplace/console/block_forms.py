"""The form for the terms of an offer's blocks; percentages and steps as people write them."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from django import forms
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _

from marketplace import money
from marketplace.console.forms import INTEGER_MAX, ConsoleForm, MoneyField, PercentField
from marketplace.models import BlockTerms

STEP = re.compile(r"(\d{1,5}):(\d{1,3}(?:\.\d{1,2})?)")
STEPS_MOST = 12
# Of asks, in whole units of the currency.
STEP_MAX = Decimal(1000)


class StepsField(forms.CharField):
    """Steps such as `24:10, 168:20`, hours and a percentage; their value is [hours, basis points]."""

    def clean(self, value: Any) -> list[list[int]]:
        steps = []
        for part in filter(None, (part.strip() for part in str(super().clean(value)).split(","))):
            found = STEP.fullmatch(part)
            if found is None or Decimal(found[2]) > 100:
                raise forms.ValidationError(_now("Write hours, a colon and a percentage: 24:10, 168:20."))
            steps.append([int(found[1]), int(Decimal(found[2]) * 100)])
        if len(steps) > STEPS_MOST or len({hours for hours, _bp in steps}) != len(steps):
            raise forms.ValidationError(_now("Write at most 12 steps, each for other hours."))
        return sorted(steps, reverse=True)


class BlockTermsForm(ConsoleForm):
    """On which terms blocks of an offer are sold."""

    is_sold = forms.BooleanField(label=_("Blocks are sold"), required=False)
    discounts = StepsField(
        label=_("Discounts by duration"), required=False, max_length=200,
        help_text=_("From so many hours on so many percent less: 24:10, 168:20."),
    )  # fmt: skip
    cancellation = StepsField(
        label=_("Kept on cancellation"), required=False, max_length=200,
        help_text=_("Up to so many hours before the start so many percent are kept: 168:0, 24:10, 1:50."),
    )  # fmt: skip
    lock_minutes = forms.IntegerField(
        label=_("Fixed so many minutes before the start"), min_value=0, max_value=1440, help_text=_("0 to 1440.")
    )
    min_gpus = forms.IntegerField(label=_("Fewest GPUs"), min_value=1, max_value=INTEGER_MAX)
    max_gpus = forms.IntegerField(label=_("Most GPUs"), min_value=1, max_value=INTEGER_MAX)
    min_hours = forms.IntegerField(label=_("Fewest hours"), min_value=1, max_value=100_000)
    max_hours = forms.IntegerField(label=_("Most hours"), min_value=1, max_value=100_000)
    horizon_hours = forms.IntegerField(label=_("Sold so many hours ahead"), min_value=1, max_value=100_000)
    resale_fee_bp = PercentField(label=_("Fee of a resale, in percent"))
    resale_cutoff_minutes = forms.IntegerField(
        label=_("Hours are sold until so many minutes before"), min_value=0, max_value=1440
    )
    ask_step_micros = MoneyField(label=_("Asks are multiples of"), most=STEP_MAX)
    lend_share_bp = PercentField(label=_("Holders' share of what spot pays, in percent"))


def initial_of(terms: BlockTerms | None) -> dict[str, Any]:
    """Return what the form shows at first: the terms that are, or ordinary ones."""
    if terms is None:
        return {
            "is_sold": True, "discounts": "24:5, 168:15, 720:25", "cancellation": "168:0, 24:10, 1:50",
            "lock_minutes": 60, "min_gpus": 1, "max_gpus": 64, "min_hours": 1, "max_hours": 4320,
            "horizon_hours": 8760, "resale_fee_bp": "5", "resale_cutoff_minutes": 60, "ask_step_micros": "0.01",
            "lend_share_bp": "50",
        }  # fmt: skip
    plain = {
        name: getattr(terms, name)
        for name in ("is_sold", "lock_minutes", "min_gpus", "max_gpus", "min_hours", "max_hours", "horizon_hours",
                     "resale_cutoff_minutes")
    }  # fmt: skip
    return plain | {
        "discounts": _steps(terms.discounts),
        "cancellation": _steps(terms.cancellation),
        "resale_fee_bp": Decimal(terms.resale_fee_bp) / 100,
        "lend_share_bp": Decimal(terms.lend_share_bp) / 100,
        "ask_step_micros": money.plain(terms.ask_step_micros),
    }


def _steps(steps: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{hours}:{Decimal(bp) / 100:g}" for hours, bp in steps)
