"""Every route of the marketplace, as Django's resolver knows it."""

import re
from collections.abc import Iterator
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver

METHODS = ("get", "post", "put", "patch", "delete")


def walked(
    patterns: list[URLPattern | URLResolver] | None = None, prefix: str = ""
) -> Iterator[tuple[str, URLPattern]]:
    """Yield path and pattern of every route below."""
    for pattern in get_resolver().url_patterns if patterns is None else patterns:
        path = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from walked(pattern.url_patterns, path)
        else:
            yield path, pattern


def api_routes() -> Iterator[tuple[str, str]]:
    """Yield method and path below /api/v1/ of every route of the API."""
    for path, pattern in walked():
        if path.startswith("api/v1/"):
            view = pattern.callback.view_class  # type: ignore[attr-defined]
            yield from ((method, path.removeprefix("api/v1/")) for method in METHODS if hasattr(view, method))


def plain(path: str) -> str:
    """Return a route's or a row's path with every id written as {}."""
    return re.sub(r"<[^>]+>|\{[^}]+\}", "{}", path.partition("?")[0])


def filled(given: Any, ids: dict[str, str]) -> Any:
    """Put ids into a path or a body."""
    if isinstance(given, str):
        return re.sub(r"\{(\w+)\}", lambda found: ids[found[1]], given)
    if isinstance(given, dict):
        return {name: filled(value, ids) for name, value in given.items()}
    if isinstance(given, list):
        return [filled(value, ids) for value in given]
    return given
