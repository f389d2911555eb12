"""When these tests begin (after everything that their fixtures made), and how they look at what is being repaired."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from provisioning.models import (
    Gpu,
    Remediation,
)

START = datetime.fromisoformat("2030-11-26T12:00:00+00:00")
Heal = Callable[..., None]


def gpu_of(played: Any, index: int = 0) -> Gpu:
    return Gpu.objects.get(node=played.node, index=index)


def repair_of(played: Any) -> Remediation:
    return Remediation.objects.filter(node=played.node).latest("pk")
