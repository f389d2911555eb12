"""Shapes of JSON values: small checks that are put together to a closed schema, and say the place of what is wrong."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from django.utils.translation import gettext as _

from marketplace.errors import BadOrder

Check = Callable[[Any, str], None]


def fail(place: str, detail: str) -> None:
    """Raise BadOrder for what is wrong at a place."""
    raise BadOrder(place, detail)


def text(least: int, most: int) -> Check:
    """A text of so many characters."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, str) or not least <= len(value.strip()) or len(value) > most or "\x00" in value:
            fail(place, _("Write %(least)s to %(most)s characters.") % {"least": least, "most": most})

    return check


def number(least: int, most: int) -> Check:
    """A whole number in a range; true and false are none."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            fail(
                place,
                _("Use a whole number from %(least)s to %(most)s.") % {"least": f"{least:,}", "most": f"{most:,}"},
            )

    return check


def choice(known: Collection[Any]) -> Check:
    """One of these."""

    def check(value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, str | int) or value not in known:
            fail(place, _("Choose one of %(known)s.") % {"known": ", ".join(map(str, known))})

    return check


def shaped(shape: re.Pattern[str], wanted: str) -> Check:
    """A text of one form; `wanted` says which."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, str) or not shape.fullmatch(value):
            fail(place, _("This has to be %(wanted)s.") % {"wanted": wanted})

    return check


def listed(each: Check, *, most: int, least: int = 0) -> Check:
    """A list of so many of them."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            fail(place, _("List %(least)s to %(most)s of them.") % {"least": least, "most": most})
        for index, one in enumerate(value):
            each(one, f"{place}/{index}")

    return check


def maybe(inner: Check) -> Check:
    """That, or null."""

    def check(value: Any, place: str) -> None:
        if value is not None:
            inner(value, place)

    return check


def made_of(fields: Mapping[str, Check]) -> Check:
    """An object of exactly these fields."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            fail(place, _("This has to be an object with the fields %(fields)s.") % {"fields": ", ".join(fields)})
        inside = f"{place}/" if place else ""
        for name in value:
            if name not in fields:
                fail(f"{inside}{name}", _("There is no such term. Terms that exist: %(fields)s.") % {
                    "fields": ", ".join(fields)
                })  # fmt: skip
        for name, inner in fields.items():
            if name not in value:
                fail(f"{inside}{name}", _("This term is missing; write null where it does not apply."))
            inner(value[name], f"{inside}{name}")

    return check


def by_kind(kinds: Mapping[str, Mapping[str, Check]]) -> Check:
    """An object whose field `kind` says which other fields it has."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            fail(place, _("This has to be an object with the field “kind”."))
        choice(tuple(kinds))(value.get("kind"), f"{place}/kind")
        made_of({"kind": choice((value["kind"],)), **kinds[value["kind"]]})(value, place)

    return check
