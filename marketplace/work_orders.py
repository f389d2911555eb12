"""What an order may say of work that runs to an end; the words are those of the fields of a job."""

import re
from collections.abc import Sequence

from django.utils.translation import gettext

from marketplace.errors import BadOrder
from marketplace.models import Offer
from provisioning.agent import manifest
from provisioning.work import Counters, Work

OUTPUTS_MAX, PATH_LENGTH_MAX = 100, 255
COUNTERS_MAX = 10
COUNTER_SHAPE = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,99}", re.ASCII)
COUNTERS_PATH = re.compile(r"/[!-~]{0,199}", re.ASCII)


def check(work: Work, *, offer: Offer, ports: Sequence[int], replicas: int) -> None:
    """Raise BadOrder for the first thing that does not make sense, naming the field."""
    _check_paths("outputs", work.outputs)
    _check_paths("checkpoint", (work.checkpoint,) if work.checkpoint else ())
    for field, sha256 in (("inputs", work.inputs), ("checkpoint", work.checkpoint_sha256)):
        if sha256 and not manifest.SHA256.fullmatch(sha256):
            raise BadOrder(field, gettext("A folder is named by the SHA-256 of its manifest, in hexadecimal."))
    if work.counters is not None:
        _check_counters(work.counters, has_network=work.has_network)
    if not work.has_network and (ports or replicas > 1):
        raise BadOrder("network", gettext("What has no network has neither ports nor other replicas."))
    if offer.runtime == Offer.Runtime.SLURM and _needs_agent(work):
        text = gettext("Nodes of a Slurm cluster carry no files, cut off no network and read no counters.")
        raise BadOrder("offer", text)


def _needs_agent(work: Work) -> bool:
    return bool(work.inputs or work.outputs or work.checkpoint or work.counters or not work.has_network)


def _check_paths(field: str, paths: Sequence[str]) -> None:
    if len(paths) > OUTPUTS_MAX:
        raise BadOrder(field, gettext("Name at most %(most)s outputs; a folder is one.") % {"most": OUTPUTS_MAX})
    for path in paths:
        if manifest.why_no_path(path) or len(path) > PATH_LENGTH_MAX:
            text = gettext("%(path)s is no relative path; use names with / between, and neither . nor ..")
            raise BadOrder(field, text % {"path": path})


def _check_counters(counters: Counters, *, has_network: bool) -> None:
    names = counters.names
    if not 0 < len(names) <= COUNTERS_MAX or not all(COUNTER_SHAPE.fullmatch(name) for name in names):
        text = gettext("Name 1 to %(most)s counters as Prometheus does: letters, digits, _ and : of ASCII.")
        raise BadOrder("counters", text % {"most": COUNTERS_MAX})
    if not 0 < counters.port < 65_536 or not COUNTERS_PATH.fullmatch(counters.path) or counters.most_per_s < 0:
        raise BadOrder("counters", gettext("Counters are at a port and a path that begins with /, such as /metrics."))
    if not has_network:
        raise BadOrder("counters", gettext("What has no network shows no counters."))
