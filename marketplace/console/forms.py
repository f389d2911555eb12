"""What a capacity manager may type, with every limit that a column has. Meaning is checked by the verbs."""

from decimal import Decimal
from typing import Any
from uuid import uuid4

from django import forms
from django.utils.translation import gettext_lazy as _

from marketplace import limits, money
from marketplace.console import catalogue
from marketplace.models import Offer
from provisioning.models import Fabric, Instance, Node, Quota, Site

REASON_LENGTH_MAX = 100  # with who gave it, a reason has to fit the ledger's own column
SMALL_MAX, INTEGER_MAX = 32_767, 2_147_483_647  # what the columns hold
AMOUNT_MAX = Decimal(1_000_000)
CURRENCIES = [(currency, currency) for currency in money.SYMBOLS]


class ConsoleForm(forms.Form):
    """A form in the frame's looks. `made` is what its verb returned; `is_refused` says that it would not."""

    made: Any = None
    is_refused = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            looks = "form-control"
            if isinstance(field, forms.BooleanField):
                looks = "form-check-input"
            elif isinstance(field, forms.ChoiceField):
                looks = "form-select"
            field.widget.attrs["class"] = looks


class MoneyField(forms.DecimalField):
    """An amount of money as a decimal string; its value is whole micro-units."""

    def __init__(self, *, may_be_nothing: bool = False, most: Decimal = AMOUNT_MAX, **kwargs: Any) -> None:
        widget = forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"})
        least = Decimal(0) if may_be_nothing else Decimal(1) / money.MICROS
        super().__init__(min_value=least, max_value=most, decimal_places=6, widget=widget, **kwargs)

    def clean(self, value: Any) -> int | None:
        amount = super().clean(value)
        return None if amount is None else int(amount * money.MICROS)


class PercentField(forms.DecimalField):
    """A share in percent with at most two places; its value is basis points."""

    def __init__(self, *, most: Decimal = Decimal(100), **kwargs: Any) -> None:
        widget = forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"})
        super().__init__(min_value=0, max_value=most, decimal_places=2, widget=widget, **kwargs)

    def clean(self, value: Any) -> int | None:
        share = super().clean(value)
        return None if share is None else int(share * 100)


def reason_field(help_text: Any = "") -> forms.CharField:
    """Return a field for why something is done; it stands in the audit log."""
    return forms.CharField(label=_("Reason"), max_length=REASON_LENGTH_MAX, help_text=help_text)


def key_field() -> forms.UUIDField:
    """Return a hidden key, new for each form that is shown: a form that is sent twice counts once."""
    return forms.UUIDField(widget=forms.HiddenInput, initial=uuid4)


def moment_field(*, label: Any, help_text: Any, required: bool = True) -> forms.DateTimeField:
    """Return a field for a time in the reader's zone."""
    widget = forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M")
    return forms.DateTimeField(label=label, help_text=help_text, required=required, widget=widget)


class NoForm(ConsoleForm):
    """A button alone."""


class ReasonForm(ConsoleForm):
    reason = reason_field()


class NodeFilter(ConsoleForm):
    """The filters of the list of nodes; they stand in its address."""

    site = forms.ChoiceField(label=_("Site"), required=False)
    offer = forms.ChoiceField(label=_("Offer"), required=False)
    state = forms.ChoiceField(label=_("State"), required=False, choices=[("", _("All")), *Node.State.choices])
    reachability = forms.ChoiceField(
        label=_("Reachability"), required=False, choices=[("", _("All")), *Node.Reachability.choices]
    )
    search = forms.CharField(label=_("Name contains"), required=False, max_length=63)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, found in (("site", catalogue.sites()), ("offer", catalogue.offers())):
            field = self.fields[name]
            assert isinstance(field, forms.ChoiceField)
            field.choices = [("", _("All")), *((row.slug, row.name) for row in found)]


class NodeForm(ConsoleForm):
    """A machine that will come."""

    name = forms.SlugField(
        label=_("Name"), max_length=63, help_text=_("Letters, digits and hyphens; as on the machine.")
    )
    offer = forms.ModelChoiceField(Offer.objects.none(), label=_("Offer"), to_field_name="public_id")
    fabric = forms.ModelChoiceField(Fabric.objects.none(), label=_("Fabric"), to_field_name="public_id")
    rack = forms.CharField(label=_("Rack"), max_length=40)
    gpu_model = forms.CharField(
        label=_("GPU model"), max_length=40, required=False, help_text=_("Empty: as the offer says.")
    )
    gpu_count = forms.IntegerField(
        label=_("GPUs"), min_value=1, max_value=SMALL_MAX, required=False, help_text=_("Empty: as the offer says.")
    )
    gpu_memory_mib = forms.IntegerField(
        label=_("Memory per GPU (MiB)"),
        min_value=1,
        max_value=INTEGER_MAX,
        required=False,
        help_text=_("Empty: as the offer says."),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["offer"].queryset = catalogue.offers()  # type: ignore[attr-defined]
        self.fields["fabric"].queryset = catalogue.fabrics()  # type: ignore[attr-defined]


class TermsForm(ConsoleForm):
    """What may change about an offer while it is sold."""

    name = forms.CharField(label=_("Name"), max_length=100)
    interconnect = forms.CharField(
        label=_("Interconnect"),
        max_length=100,
        help_text=_("As customers read it, such as “NVLink 4, 400G InfiniBand”."),
    )
    runtime = forms.ChoiceField(
        label=_("What it runs"),
        choices=Offer.Runtime.choices,
        help_text=_("Containers take images. It can be changed only while the offer has no nodes."),
    )
    min_gpus = forms.IntegerField(label=_("Fewest GPUs per instance"), min_value=1, max_value=INTEGER_MAX)
    max_gpus = forms.IntegerField(label=_("Most GPUs per instance"), min_value=1, max_value=INTEGER_MAX)
    is_listed = forms.BooleanField(label=_("On the market"), required=False)


class OfferForm(TermsForm):
    """A new offer."""

    slug = forms.SlugField(label=_("Short name"), max_length=50, help_text=_("Used in addresses and commands."))
    supplier = forms.ModelChoiceField(catalogue.suppliers(), label=_("Supplier"), to_field_name="public_id")
    site = forms.ModelChoiceField(catalogue.sites(), label=_("Site"), to_field_name="public_id")
    gpu_model = forms.CharField(label=_("GPU model"), max_length=40, help_text=_("Exactly as nodes report it."))
    gpu_memory_gib = forms.IntegerField(label=_("Memory per GPU (GiB)"), min_value=1, max_value=INTEGER_MAX)
    gpus_per_node = forms.IntegerField(label=_("GPUs per node"), min_value=1, max_value=SMALL_MAX)

    field_order = (
        "name", "slug", "supplier", "site", "gpu_model", "gpu_memory_gib", "gpus_per_node", "interconnect",
        "runtime", "min_gpus", "max_gpus", "is_listed",
    )  # fmt: skip


class SiteForm(ConsoleForm):
    """A new site."""

    name = forms.CharField(label=_("Name"), max_length=100)
    slug = forms.SlugField(label=_("Short name"), max_length=50, help_text=_("Used in addresses and commands."))
    kind = forms.ChoiceField(label=_("Kind"), choices=Site.Kind.choices)
    city = forms.CharField(label=_("City"), max_length=100)
    country = forms.RegexField(
        r"^[A-Z]{2}$",
        label=_("Country"),
        help_text=_("Two letters (ISO 3166-1) of the ground it stands on, such as NO."),
    )
    jurisdiction = forms.RegexField(
        r"^[A-Z]{2}$", label=_("Jurisdiction"), help_text=_("Two letters of the law that its operator answers to.")
    )
    latitude = forms.DecimalField(label=_("Latitude"), min_value=-90, max_value=90, decimal_places=5)
    longitude = forms.DecimalField(label=_("Longitude"), min_value=-180, max_value=180, decimal_places=5)
    grid_zone = forms.CharField(label=_("Grid zone"), max_length=20, help_text=_("Such as NO4 or JP-KN."))
    power_source = forms.CharField(label=_("Power source"), max_length=40, help_text=_("Such as hydro, wind or grid."))
    pue = forms.DecimalField(
        label=_("PUE"), min_value=1, max_value=Decimal("99.99"), decimal_places=2,
        help_text=_("All power over the power of the computers; at least 1."),
    )  # fmt: skip
    volume_kind = forms.ChoiceField(
        label=_("Volumes lie"),
        choices=Site.VolumeKind.choices,
        initial=Site.VolumeKind.LOCAL,
        help_text=_("On a shared path, agents need --volumes and --volumes-are-shared."),
    )
    certifications = forms.CharField(
        label=_("Certifications"), max_length=500, required=False, help_text=_("Separated by commas.")
    )

    def clean_certifications(self) -> list[str]:
        return [word for part in self.cleaned_data["certifications"].split(",") if (word := part.strip())]


class FabricForm(ConsoleForm):
    """A new fabric of a site."""

    name = forms.CharField(label=_("Name"), max_length=100)
    kind = forms.ChoiceField(label=_("Kind"), choices=Fabric.Kind.choices)


class QuotaWordsForm(ConsoleForm):
    """Which GPUs are counted; empty choices stand for all together."""

    gpu_model = forms.ChoiceField(label=_("GPU model"), required=False)
    market = forms.ChoiceField(label=_("Market"), required=False, choices=[("", _("All")), *Instance.Market.choices])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model = self.fields["gpu_model"]
        assert isinstance(model, forms.ChoiceField)
        model.choices = [("", _("All")), *((name, name) for name in limits.models())]


class QuotaForm(QuotaWordsForm):
    """How much a project or an organization may hold."""

    unit = forms.ChoiceField(label=_("What is counted"), required=False, choices=Quota.Unit.choices)
    limit = forms.DecimalField(
        label=_("Limit"),
        min_value=0,
        max_value=INTEGER_MAX,
        decimal_places=6,
        help_text=_("GPUs at once, or the most that they may cost for an hour."),
        widget=forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"}),
    )
    reason = reason_field()

    def clean(self) -> dict[str, Any]:
        found: dict[str, Any] = super().clean() or {}
        found["unit"] = found.get("unit") or Quota.Unit.GPUS
        limit = found.get("limit")
        if limit is None:
            return found
        if found["unit"] == Quota.Unit.MICROS_PER_HOUR:
            limit *= money.MICROS
        elif limit != int(limit):
            self.add_error("limit", _("Type a whole number, such as 1."))
        return found | {"limit": int(limit)}


class NoteForm(ConsoleForm):
    """A decision with a note to the customer."""

    note = forms.CharField(
        label=_("Note"), max_length=500, required=False, help_text=_("The customer sees it."),
        widget=forms.Textarea(attrs={"rows": 3}),
    )  # fmt: skip


class QuotaRuleForm(QuotaWordsForm):
    """A rule that approves requests at once."""

    name = forms.CharField(label=_("Name"), max_length=100)
    gpus_max = forms.IntegerField(label=_("GPUs at most"), min_value=1, max_value=INTEGER_MAX)
    paid_micros_min = MoneyField(label=_("Paid so far, at least"), required=False)
    currency = forms.ChoiceField(label=_("Currency"), choices=CURRENCIES)
    field_order = ("name", "gpus_max", "paid_micros_min", "currency", "gpu_model", "market")


class CreditForm(ConsoleForm):
    """Promotional credit."""

    amount_micros = MoneyField(label=_("Amount"))
    reason = reason_field(_("The customer sees it."))
    expires_at = moment_field(
        label=_("Expires"),
        required=False,
        help_text=_("In your time zone. What is left then is taken back. Empty: never."),
    )
    key = key_field()


class SpotTermsForm(ConsoleForm):
    """How an offer is sold by auction."""

    is_enabled = forms.BooleanField(
        label=_("Take bids"), required=False, help_text=_("Otherwise whoever runs is let go with notice.")
    )
    currency = forms.ChoiceField(label=_("Currency"), choices=CURRENCIES)
    reserve_micros = MoneyField(label=_("Reserve per GPU-hour"), help_text=_("Nobody pays less."))
    grid_micros = MoneyField(label=_("Step"), help_text=_("Bids and the reserve are multiples of it."))
    interval_s = forms.IntegerField(label=_("Seconds between two auctions"), min_value=1, max_value=INTEGER_MAX)
    min_notice_s = forms.IntegerField(
        label=_("Notice in seconds"),
        min_value=0,
        max_value=INTEGER_MAX,
        help_text=_("Binding: nobody is interrupted sooner, and a notice that we cut short is given back."),
    )
    hysteresis_bp = forms.IntegerField(
        label=_("Advantage of whoever runs, in basis points"),
        min_value=0,
        max_value=INTEGER_MAX,
        help_text=_("1000 is ten percent: so much more another must bid."),
    )
    rise_bp = forms.IntegerField(
        label=_("Steepest rise of what is charged, in basis points"),
        min_value=1,
        max_value=INTEGER_MAX,
        help_text=_("From one auction to the next; it falls at once."),
    )
    buffer_gpus = forms.IntegerField(label=_("GPUs held back"), min_value=0, max_value=INTEGER_MAX)
    cap_bp = forms.IntegerField(
        label=_("Most that one organization wins, in basis points of the GPUs"),
        min_value=0,
        max_value=INTEGER_MAX,
        help_text=_("2500 is a quarter; 0 sets no limit. The sealed book then says whose each bid is."),
    )
