"""Slurm clusters: the list, one of them, adding one, another token."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from marketplace.console import clusters, fleet
from marketplace.console.cluster_forms import ClusterForm, TokenForm
from marketplace.console.door import carried_out, form_page, managers_only, sent
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
    cluster = clusters.cluster_for(cluster_id)
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
