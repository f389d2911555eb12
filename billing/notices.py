"""Telling customers: a row for each thing to say, written in the transaction of what it is about."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from billing.models import Notice


@dataclass(frozen=True)
class News:
    """What is to be told. The same key is told once, whoever says it how often."""

    organization_id: int
    kind: Notice.Kind
    key: str
    facts: Mapping[str, str] = field(default_factory=dict)


def tell(news: Iterable[News], *, at: datetime) -> int:
    """Write down what was not told before; return how much that was. The shop front sends it."""
    by_key = {one.key: one for one in news}
    known = set(Notice.objects.filter(key__in=by_key).values_list("key", flat=True))
    fresh = [one for key, one in by_key.items() if key not in known]
    Notice.objects.bulk_create(
        [
            Notice(
                organization_id=one.organization_id, kind=one.kind, key=one.key, facts=dict(one.facts), created_at=at,
                next_try_at=at,
            )
            for one in fresh
        ],
        ignore_conflicts=True,
    )  # fmt: skip
    return len(fresh)
