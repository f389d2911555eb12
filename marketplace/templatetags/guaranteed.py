"""Filters of guaranteed performance."""

from django import template
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from marketplace.portal import guarantee_chart

register = template.Library()

METRICS: dict[str, Promise] = {
    "throughput": _("throughput"),
    "availability": _("availability"),
    "gpu_health": _("GPU health"),
}


@register.filter
def measured(milli: int, metric: str) -> str:
    """Return what was measured as people read it."""
    return guarantee_chart.said(milli, metric)


@register.filter
def metric_name(metric: str) -> str:
    """Return the name of what is guaranteed."""
    return str(METRICS.get(metric, metric))
