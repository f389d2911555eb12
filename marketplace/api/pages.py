"""Lists by keyset: a cursor holds the last row's key, signed, so that pages neither skip nor repeat while rows come."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from django.core import signing
from django.db.models import Model, QuerySet
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from provisioning.output import BadCursor

LIMIT_DEFAULT, LIMIT_MAX = 50, 200
SALT = "api cursor"

Row = TypeVar("Row", bound=Model)
Item = TypeVar("Item")
Page = tuple[list[Item], str | None]


class PageQuery(serializers.Serializer[Any]):
    """What every list takes."""

    limit = serializers.IntegerField(min_value=1, max_value=LIMIT_MAX, default=LIMIT_DEFAULT, help_text="rows a page")
    cursor = serializers.CharField(
        required=False, allow_blank=True, max_length=500, help_text="`next_cursor` of the page before"
    )


def checked(serializer: type[serializers.Serializer[Any]], given: Any) -> dict[str, Any]:
    """Return what was given as the serializer understands it, or raise ValidationError naming the fields."""
    parsed = serializer(data=given)
    parsed.is_valid(raise_exception=True)
    return dict(parsed.validated_data)


def queried(request: Request, *shapes: type[serializers.Serializer[Any]]) -> dict[str, Any]:
    """Return the query as all of these shapes together understand it.

    A parameter that none of them knows is refused: a misspelt `dry_run` must
    not rent, a misspelt filter not show everything.
    """
    given = request.query_params.dict()
    known = [name for shape in shapes for name in shape().get_fields()]
    if unknown := sorted(set(given).difference(known)):
        raise serializers.ValidationError({name: ["There is no such parameter here."] for name in unknown})
    return {name: value for shape in shapes for name, value in checked(shape, given).items()}


def paged(
    rows: QuerySet[Row], query: dict[str, Any], answers: Callable[[Sequence[Row]], Sequence[dict[str, Any]]]
) -> Response:
    """Return one page of rows, newest first. One query, and those of `answers`."""
    limit, salt = query["limit"], f"{SALT} {rows.model._meta.label}"
    if query.get("cursor"):
        rows = rows.filter(pk__lt=_key(query["cursor"], salt))
    found = list(rows.order_by("-pk")[: limit + 1])
    more = len(found) > limit
    found = found[:limit]
    next_cursor = signing.dumps(found[-1].pk, salt=salt) if more else None
    return Response({"data": list(answers(found)), "next_cursor": next_cursor})


def paged_by_key(found: Iterable[Item], query: dict[str, Any], key: Callable[[Item], tuple[int, int]]) -> Page[Item]:
    """Return one page of what is in memory, in the order of its keys, and the next cursor."""
    salt = f"{SALT} by key"
    after = tuple(_key(query["cursor"], salt)) if query.get("cursor") else ()
    rest = sorted((item for item in found if key(item) > after), key=key)
    page = rest[: query["limit"]]
    return page, signing.dumps(key(page[-1]), salt=salt) if len(rest) > len(page) else None


def _key(cursor: str, salt: str) -> Any:
    try:
        return signing.loads(cursor, salt=salt)
    except (signing.BadSignature, ValueError) as error:
        raise BadCursor("This is not a cursor that we gave; leave it out to begin anew.") from error
