"""How the SDK writes nested parameters, `a[b][0]=c`, and back."""

from typing import Any
from urllib.parse import parse_qsl


def read(text: str) -> dict[str, Any]:
    """Return the parameters of a form or query."""
    found: dict[str, Any] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        steps = name.replace("]", "").split("[")
        place = found
        for step in steps[:-1]:
            place = place.setdefault(step, {})
        place[steps[-1] or str(len(place))] = value
    return {name: plain(value) for name, value in found.items()}


def plain(value: Any) -> Any:
    """Return a value with each dictionary whose keys are 0, 1, 2 ... as the list that it means."""
    if not isinstance(value, dict):
        return value
    inner = {name: plain(one) for name, one in value.items()}
    if inner and all(name.isdecimal() for name in inner):
        return [inner[name] for name in sorted(inner, key=int)]
    return inner


def is_true(value: Any) -> bool:
    """Return what a boolean parameter says."""
    return str(value).lower() == "true"
