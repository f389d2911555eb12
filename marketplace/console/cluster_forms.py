"""What a capacity manager types about a Slurm cluster."""

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from marketplace.console import catalogue, clusters
from marketplace.console.forms import ConsoleForm
from marketplace.models import Offer
from provisioning.models import Fabric

TOKEN_MAX = 4000


def token_field(*, is_required: bool = True) -> forms.CharField:
    """Return the field for a JSON Web Token; it is never shown again."""
    return forms.CharField(
        label=_("Token"), max_length=TOKEN_MAX, required=is_required,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text=_("A JSON Web Token of that user (scontrol token). It rests encrypted and is never shown again."),
    )  # fmt: skip


class ClusterFactsForm(ConsoleForm):
    """What may change of a cluster."""

    name = forms.SlugField(label=_("Name"), max_length=20, help_text=_("Its nodes' names begin with it."))
    base_url = forms.RegexField(
        r"^https?://[^\s?#]+$", max_length=200, label=_("Address of slurmrestd"),
        help_text=_("Such as https://slurm.example:6820; over plain http the token can be read on the way."),
    )  # fmt: skip
    user = forms.CharField(
        label=_("User"), max_length=32,
        help_text=_("Whose jobs they are. An operator of Slurm, unless errands have a user of their own."),
    )  # fmt: skip
    partition = forms.CharField(label=_("Partition"), max_length=64, help_text=_("It must be ours alone."))
    spot_partition = forms.CharField(
        label=_("Preemptible partition"), max_length=64, required=False, help_text=_("For spot. Empty: there is none.")
    )
    log_path = forms.RegexField(
        r"^/[^\x00]*$", max_length=200, label=_("Folder of output"), required=False,
        help_text=_("Shared by nodes and workers, under one path. Empty: customers see no output."),
    )  # fmt: skip


class ClusterForm(ClusterFactsForm):
    """A cluster that will sell its nodes."""

    offer = forms.ModelChoiceField(
        Offer.objects.none(), label=_("Offer"), to_field_name="public_id", help_text=_("One that runs Slurm jobs.")
    )
    fabric = forms.ModelChoiceField(Fabric.objects.none(), label=_("Fabric"), to_field_name="public_id")
    token = token_field()
    field_order = (
        "name", "offer", "fabric", "base_url", "user", "token", "partition", "spot_partition", "log_path",
    )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["offer"].queryset = clusters.offers()  # type: ignore[attr-defined]
        self.fields["fabric"].queryset = catalogue.fabrics()  # type: ignore[attr-defined]


class ErrandsForm(ConsoleForm):
    """Who drains and resumes nodes in Slurm."""

    errand_user = forms.CharField(
        label=_("User of errands"), max_length=32, required=False,
        help_text=_("An operator of Slurm. Empty: errands run as the user of jobs, who must be one then."),
    )  # fmt: skip
    errand_token = token_field(is_required=False)


class TokenForm(ConsoleForm):
    token = token_field()
