"""How many GPUs a project may hold: one guarded update, no read before it."""

from django.db.models import F

from provisioning.errors import QuotaExceeded
from provisioning.models import Quota

DEFAULT_LIMIT = 16


def take(*, project_id: int, gpus: int) -> None:
    """Hold `gpus` of the project's quota, or raise QuotaExceeded with nothing held."""
    assert gpus > 0
    if Quota.objects.filter(project_id=project_id, held__lte=F("limit") - gpus).update(held=F("held") + gpus):
        return None
    quota, is_new = Quota.objects.get_or_create(project_id=project_id, defaults={"limit": DEFAULT_LIMIT})
    if is_new:
        return take(project_id=project_id, gpus=gpus)
    raise QuotaExceeded(wanted=gpus, held=quota.held, limit=quota.limit)


def give_back(*, project_id: int, gpus: int) -> None:
    """Let go of `gpus` of the project's quota; the column's own check refuses to go below zero."""
    Quota.objects.filter(project_id=project_id).update(held=F("held") - gpus)


def set_limit(*, project_id: int, limit: int) -> None:
    """Allow a project `limit` GPUs. A limit below what is held stops nothing; it only refuses more."""
    Quota.objects.update_or_create(project_id=project_id, defaults={"limit": limit})
