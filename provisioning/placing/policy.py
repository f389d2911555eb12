"""Policies: hard filters on where a tenant's instances may run. Each is a document; all that apply must allow.

A document has any of these keys, and an empty one allows everything:

* `countries`, `jurisdictions`, `power_sources`, `suppliers`: `{"allow": [...], "deny": [...]}`. What is denied is
  denied whatever is allowed; an `allow` that is there, even empty, denies all that it does not name.
* `certifications`: a list, all of which the site must have.
* `near`: `{"latitude", "longitude", "within_ms"}`, see `round_trip_ms`.
* `no_shared_host`: true for nodes that nobody else's instances are on.

No filter is ever relaxed: what nothing satisfies is refused, or waits.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LISTED = ("countries", "jurisdictions", "power_sources", "suppliers")
FACT_OF = {
    "countries": "country",
    "jurisdictions": "jurisdiction",
    "power_sources": "power_source",
    "suppliers": "supplier",
}
# Rules that concern the site or the offer, in the order in which they are told.
SITE_RULES = ("countries", "jurisdictions", "certifications", "near", "power_sources", "suppliers")
ENTRIES_MAX = 250
TEXT_MAX = 100

EARTH_RADIUS_KM = 6371.0088
LIGHT_KM_PER_MS = 299.792458
FIBRE_INDEX = 1.4682


class BadPolicy(ValueError):
    """The document does not make sense; `field` is a path in it, `problem` one of a closed list."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field, self.problem = field, problem


@dataclass(frozen=True, slots=True)
class Facts:
    """What a policy reads of an offer and its site; `supplier` is the public id of who sells it."""

    country: str
    jurisdiction: str
    latitude: float
    longitude: float
    power_source: str
    certifications: frozenset[str]
    supplier: str


def checked(document: Any) -> dict[str, Any]:
    """Return the document in its normal form, or raise BadPolicy for the first thing that does not make sense."""
    if not isinstance(document, Mapping):
        raise BadPolicy("", "object")
    found = {key: _part(key, document[key]) for key in document}
    return {key: value for key, value in found.items() if value not in (None, False, [], {})}


def _part(key: str, given: Any) -> Any:
    if key in LISTED:
        return _lists(key, given)
    if key == "certifications":
        return _texts(key, given, key=key)
    if key == "near":
        return None if given is None else _near(given)
    if key != "no_shared_host":
        raise BadPolicy(str(key)[:TEXT_MAX], "unknown")
    if not isinstance(given, bool):
        raise BadPolicy(key, "boolean")
    return given


def broken_by(documents: Iterable[Mapping[str, Any]], facts: Facts) -> list[str]:
    """Return the rules that keep a tenant with these policies out of an offer, each once; empty where it may run."""
    documents = list(documents)
    return [rule for rule in SITE_RULES if any(not _allows(one, rule, facts) for one in documents if rule in one)]


def wants_whole_hosts(documents: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether any of these policies says that no host may be shared."""
    return any(one.get("no_shared_host", False) for one in documents)


def round_trip_ms(*, latitude: float, longitude: float, facts: Facts) -> float:
    """Return the least milliseconds that a signal needs from a place to a site and back.

    Great-circle distance by the haversine formula (R. W. Sinnott, "Virtues of
    the Haversine", Sky & Telescope 68, 1984) on a sphere of the Earth's mean
    radius, 6371.0088 km (IUGG), there and back at the speed of light in glass:
    299.792458 km/ms divided by 1.4682, the group index of single-mode fibre at
    1550 nm (Corning SMF-28 Ultra, data sheet). Cables make detours and routers
    take time, so no network is quicker; what is filtered out by it is too far for sure.
    """
    here, there = math.radians(latitude), math.radians(facts.latitude)
    turn = math.radians(facts.longitude - longitude)
    half = math.sin((there - here) / 2) ** 2 + math.cos(here) * math.cos(there) * math.sin(turn / 2) ** 2
    distance_km = 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, half)))
    return 2 * distance_km * FIBRE_INDEX / LIGHT_KM_PER_MS


def _allows(document: Mapping[str, Any], rule: str, facts: Facts) -> bool:
    wanted = document[rule]
    if rule == "certifications":
        return facts.certifications.issuperset(wanted)
    if rule == "near":
        took = round_trip_ms(latitude=wanted["latitude"], longitude=wanted["longitude"], facts=facts)
        return took <= float(wanted["within_ms"])
    value = getattr(facts, FACT_OF[rule])
    return value not in wanted.get("deny", ()) and ("allow" not in wanted or value in wanted["allow"])


def _lists(key: str, given: Any) -> dict[str, list[str]]:
    if not isinstance(given, Mapping):
        raise BadPolicy(key, "allow_deny")
    for name in given:
        if name not in {"allow", "deny"}:
            raise BadPolicy(f"{key}/{name}"[:TEXT_MAX], "unknown")
    return {name: _texts(f"{key}/{name}", given[name], key=key) for name in ("allow", "deny") if name in given}


def _texts(field: str, given: Any, *, key: str) -> list[str]:
    if not isinstance(given, list) or len(given) > ENTRIES_MAX:
        raise BadPolicy(field, "list")
    for one in given:
        if not isinstance(one, str) or not 0 < len(one.strip()) <= TEXT_MAX or "\x00" in one:
            raise BadPolicy(field, "text")
        if key in {"countries", "jurisdictions"} and not (len(one) == 2 and one.isascii() and one.isalpha()):
            raise BadPolicy(field, "country")
    upper = key in {"countries", "jurisdictions"}
    return sorted({one.strip().upper() if upper else one.strip() for one in given})


def _near(given: Any) -> dict[str, float]:
    if not isinstance(given, Mapping) or set(given) != {"latitude", "longitude", "within_ms"}:
        raise BadPolicy("near", "near")
    limits = {"latitude": (-90, 90), "longitude": (-180, 180), "within_ms": (0, 1000)}
    found = {}
    for name, (low, high) in limits.items():
        value = given[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise BadPolicy(f"near/{name}", "number")
        found[name] = float(value)
    return found
