"""Every route of the marketplace, as Django's resolver knows it."""

from collections.abc import Iterator

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
