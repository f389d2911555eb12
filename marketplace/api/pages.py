"""Lists by keyset: a cursor holds the last row's key, signed, so that pages neither skip nor repeat while rows come."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from django.core import signing
from django.db.models import Model, QuerySet
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

LIMIT_DEFAULT, LIMIT_MAX = 50, 200
SALT = "api cursor"

Row = TypeVar("Row", bound=Model)


class PageQuery(serializers.Serializer[Any]):
    """What every list takes."""

    limit = serializers.IntegerField(min_value=1, max_value=LIMIT_MAX, default=LIMIT_DEFAULT, help_text="rows a page")
    cursor = serializers.CharField(required=False, max_length=500, help_text="`next_cursor` of the page before")

    def validate_cursor(self, cursor: str) -> int:
        try:
            return int(signing.loads(cursor, salt=SALT))
        except (signing.BadSignature, ValueError, TypeError) as error:
            raise serializers.ValidationError(
                "This is not a cursor that we gave; leave it out to begin anew."
            ) from error


def checked(serializer: type[serializers.Serializer[Any]], given: Any) -> dict[str, Any]:
    """Return what was given as the serializer understands it, or raise ValidationError naming the fields."""
    parsed = serializer(data=given)
    parsed.is_valid(raise_exception=True)
    return dict(parsed.validated_data)


def paged(
    rows: QuerySet[Row], request: Request, answers: Callable[[Sequence[Row]], Sequence[dict[str, Any]]]
) -> Response:
    """Return one page of rows, newest first. One query, and those of `answers`."""
    query = checked(PageQuery, request.query_params)
    limit = query["limit"]
    if "cursor" in query:
        rows = rows.filter(pk__lt=query["cursor"])
    found = list(rows.order_by("-pk")[: limit + 1])
    more = len(found) > limit
    found = found[:limit]
    next_cursor = signing.dumps(found[-1].pk, salt=SALT) if more else None
    return Response({"data": list(answers(found)), "next_cursor": next_cursor})
