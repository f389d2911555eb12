"""Slurm clusters: the list, one of them, adding, changing and retiring one, another token."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from marketplace.console import clusters, fleet
from marketplace.console.cluster_forms import ClusterFactsForm, ClusterForm, ErrandsForm, TokenForm
from marketplace.console.door import carried_out, form_page, managers_only, sent
from marketplace.console.forms import ReasonForm
from marketplace.portal.doors import Visit


@managers_only()
def listed(visit: Visit) -> HttpResponse:
    """List the clusters."""
    return visit.live_page("console/clusters.html", "live", {"clusters": clusters.listed()})


@managers_only("GET", "HEAD", "POST")
def new(visit: Visit) -> HttpResponse:
    """Take a cluster in."""
    form = ClusterForm(sent(visit), initial={"partition": "gpumarket"})
    if carried_out(visit, form, clusters.add):
        messages.success(visit.request, _("The cluster is added. Its nodes appear once it has answered."))
        return redirect("console-cluster", form.made.public_id)
    return form_page(
        visit,
        form,
        title=_("Add a Slurm cluster"),
        text=_("Its slurmrestd is asked for its nodes, and each becomes a node of the offer."),
        send=_("Add"),
        back=reverse("console-clusters"),
    )


@managers_only()
def shown(visit: Visit, cluster_id: str) -> HttpResponse:
    """Show a cluster: whether it answers, its nodes, its jobs."""
    cluster = clusters.cluster_for(cluster_id)
    context = {
        "cluster": cluster,
        "nodes": list(clusters.nodes_of(cluster)),
        "jobs": list(clusters.jobs_of(cluster)),
        "history": fleet.history(cluster.public_id),
    }
    return visit.live_page("console/cluster.html", "live", context)


@managers_only("GET", "HEAD", "POST")
def token(visit: Visit, cluster_id: str) -> HttpResponse:
    """Give a cluster another token."""
    cluster = clusters.living_cluster_for(cluster_id)
    form = TokenForm(sent(visit))
    if carried_out(visit, form, clusters.change_token, cluster=cluster, at=visit.at):
        messages.success(visit.request, _("The token is changed. The next look at the cluster uses it."))
        return redirect("console-cluster", cluster_id)
    return form_page(
        visit,
        form,
        title=_("Token of %(cluster)s") % {"cluster": cluster},
        text=_("What runs is not touched. Renew a token before it expires."),
        send=_("Save"),
        back=reverse("console-cluster", args=[cluster_id]),
    )


@managers_only("GET", "HEAD", "POST")
def edit(visit: Visit, cluster_id: str) -> HttpResponse:
    """Change where a cluster is and what of it is ours."""
    cluster = clusters.living_cluster_for(cluster_id)
    known = {name: getattr(cluster, name) for name in ClusterFactsForm.base_fields}
    form = ClusterFactsForm(sent(visit), initial=known)
    if carried_out(visit, form, clusters.change, cluster=cluster, at=visit.at):
        messages.success(visit.request, _("The cluster is changed. The next look at it goes by that."))
        return redirect("console-cluster", cluster_id)
    return form_page(
        visit,
        form,
        title=_("Edit %(cluster)s") % {"cluster": cluster},
        text=_(
            "Its nodes keep their names. An address of another cluster would make all that runs look lost. "
            "User, partitions and folder change only while nothing runs there."
        ),
        send=_("Save"),
        back=reverse("console-cluster", args=[cluster_id]),
    )


@managers_only("GET", "HEAD", "POST")
def errands(visit: Visit, cluster_id: str) -> HttpResponse:
    """Say as whom nodes are drained and resumed in Slurm."""
    cluster = clusters.living_cluster_for(cluster_id)
    form = ErrandsForm(sent(visit), initial={"errand_user": cluster.errand_user})
    if carried_out(visit, form, clusters.change_errands, cluster=cluster, at=visit.at):
        messages.success(visit.request, _("The user of errands is changed."))
        return redirect("console-cluster", cluster_id)
    return form_page(
        visit,
        form,
        title=_("Errands of %(cluster)s") % {"cluster": cluster},
        text=_("With a user of their own, no customer's command has the rights of an operator of Slurm."),
        send=_("Save"),
        back=reverse("console-cluster", args=[cluster_id]),
    )


@managers_only("GET", "HEAD", "POST")
def retire(visit: Visit, cluster_id: str) -> HttpResponse:
    """Sell a cluster's nodes no more."""
    cluster = clusters.living_cluster_for(cluster_id)
    form = ReasonForm(sent(visit))
    if carried_out(visit, form, clusters.retire, cluster=cluster, at=visit.at):
        messages.success(visit.request, _("The cluster is retired."))
        return redirect("console-cluster", cluster_id)
    return form_page(
        visit,
        form,
        title=_("Retire %(cluster)s") % {"cluster": cluster},
        text=_(
            "Its nodes are sold no more, its tokens are forgotten, and nothing is asked of it again. "
            "This cannot be undone, and needs that nothing runs there."
        ),
        send=_("Retire"),
        is_dangerous=True,
        back=reverse("console-cluster", args=[cluster_id]),
    )
