"""JSON as the API takes it: small, flat, and each name once."""

import json
from collections.abc import Mapping
from typing import IO, Any

from rest_framework.exceptions import APIException, ParseError
from rest_framework.parsers import BaseParser

BODY_BYTES_MAX = 1024 * 1024


class BodyTooLarge(APIException):
    """The body is larger than anything that makes sense; it was not read."""

    status_code = 413


class StrictJSONParser(BaseParser):
    """JSON of RFC 8259, without NaN and without names that come twice (of which a program would lose one)."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        assert parser_context is not None
        if int(parser_context["request"].META.get("CONTENT_LENGTH") or 0) > BODY_BYTES_MAX:
            raise BodyTooLarge(f"A body has at most {BODY_BYTES_MAX:,} bytes.")
        try:
            return json.loads(stream.read(), parse_constant=_refused, object_pairs_hook=_each_once)
        except RecursionError as error:
            raise ParseError("The JSON is nested too deeply.") from error
        except ValueError as error:
            raise ParseError(f"This is not JSON: {error}") from error


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("a name comes twice in one object")
    return named
