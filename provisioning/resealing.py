"""Seals everything anew with today's secret key, so that a former one may be forgotten."""

from collections.abc import Iterable

from django.db.models import Model

from provisioning.models import Cluster, RegistryCredential
from provisioning.secrets import Unreadable, resealed

# Every column of this room that rests sealed.
SEALED: tuple[tuple[type[Model], str], ...] = (
    (RegistryCredential, "sealed_password"),
    (Cluster, "token_sealed"),
    (Cluster, "errand_token_sealed"),
)


def reseal(columns: Iterable[tuple[type[Model], str]] = SEALED) -> tuple[int, list[str]]:
    """Seal every secret with today's key; return how many, and the ids of those that no key of ours opens."""
    done, unreadable = 0, []
    for model, column in columns:
        rows = model._default_manager.exclude(**{column: ""}).order_by("pk").values_list("pk", "public_id", column)
        for pk, public_id, sealed in rows:
            try:
                fresh = resealed(sealed)
            except Unreadable:
                unreadable.append(public_id)
                continue
            # What was given anew meanwhile is sealed with today's key already.
            done += model._default_manager.filter(pk=pk, **{column: sealed}).update(**{column: fresh})
    return done, unreadable
