"""The table of rules: what each health event means, as versioned data. `table.toml` says what its columns mean."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("table.toml")
OPERATIONS = frozenset({"reset_gpu", "reboot_node"})


class Action(StrEnum):
    """What is done about an event."""

    RECORD = "record"
    APPLICATION = "application"
    DEGRADE = "degrade"
    RESET_GPU = "reset_gpu"
    REBOOT_NODE = "reboot_node"
    REPLACE = "replace"


class Severity(IntEnum):
    """How bad it is; each action has the severity of its own name."""

    RECORD = 0
    APPLICATION = 1
    DEGRADE = 2
    RESET_GPU = 3
    REBOOT_NODE = 4
    REPLACE = 5


class Kind(StrEnum):
    """Whose word a rule is."""

    VERDICT = "verdict"
    FACT = "fact"
    CATALOGUE = "catalogue"


@dataclass(frozen=True)
class Rule:
    """One row of the table."""

    id: str
    action: Action
    text: str
    codes: tuple[str, ...] = ()
    kind: Kind = Kind.CATALOGUE
    scope: str = "gpu"
    detail: re.Pattern[str] | None = None
    drain: str = "immediate"
    drain_minutes: int = 60
    spares: bool = False
    ladder: tuple[str, ...] = ()
    window_hours: int = 168
    clears_after_minutes: int | None = None

    @property
    def severity(self) -> Severity:
        """How bad what this rule describes is."""
        return Severity[self.action.name]

    def fits(self, *, code: str, detail: str) -> bool:
        """Say whether an event is of this rule."""
        is_of_code = any(
            code == wanted or (wanted.endswith("*") and code.startswith(wanted[:-1])) for wanted in self.codes
        )
        return is_of_code and (self.detail is None or self.detail.search(detail) is not None)


@dataclass(frozen=True)
class Correlation:
    """Events that condemn nothing alone, and together do."""

    codes: tuple[str, ...]
    count: int
    window_hours: int
    rule: str
    burst_seconds: int = 0
    not_on_gpus: int | None = None
    same_place: re.Pattern[str] | None = None


@dataclass(frozen=True)
class Table:
    """All rules of one version."""

    version: str
    source: str
    driver_from: int
    driver_to: int
    lemon_remediations: int
    lemon_window_hours: int
    rules: tuple[Rule, ...]
    correlations: tuple[Correlation, ...]

    def find(self, *, code: str, detail: str = "") -> Rule:
        """Return the first rule that fits; a code that no rule knows is recorded and nothing else."""
        return next((rule for rule in self.rules if rule.fits(code=code, detail=detail)), UNLISTED)

    def named(self, rule_id: str) -> Rule:
        """Return the rule of this id; where the table has it no more, the one that leaves all to a person."""
        return next((rule for rule in (*self.rules, UNLISTED, LEMON) if rule.id == rule_id), MANUAL)

    def covers(self, driver: str | None) -> bool:
        """Say whether the table was made for this driver; True where the driver is not known."""
        major = re.match(r"\d+", driver or "")
        return major is None or self.driver_from <= int(major[0]) <= self.driver_to


UNLISTED = Rule(id="unlisted", action=Action.RECORD, text="No rule knows this code")
LEMON = Rule(id="lemon", action=Action.REPLACE, scope="node", kind=Kind.FACT, text="The node was repaired too often")
MANUAL = Rule(id="manual", action=Action.DEGRADE, kind=Kind.FACT, text="A capacity manager took it out of service")


@cache
def current() -> Table:
    """Return the table that is shipped with this version of the marketplace."""
    return parse(tomllib.loads(TABLE.read_text()))


def parse(source: Mapping[str, Any]) -> Table:
    """Return a table, checked: ids are unique, ladders name operations, correlations name rules."""
    rules = tuple(_rule(entry) for entry in source["rule"])
    correlations = tuple(_correlation(entry) for entry in source["correlation"])
    ids = [rule.id for rule in rules]
    assert len(set(ids)) == len(ids), "two rules share an id"
    assert {correlation.rule for correlation in correlations} <= set(ids), "a correlation names no rule"
    return Table(
        version=source["version"],
        source=source["source"],
        driver_from=source["driver_from"],
        driver_to=source["driver_to"],
        lemon_remediations=source["lemon"]["remediations"],
        lemon_window_hours=source["lemon"]["window_hours"],
        rules=rules,
        correlations=correlations,
    )


def _rule(entry: Mapping[str, Any]) -> Rule:
    rule = Rule(
        **dict(entry)
        | {
            "action": Action(entry["action"]),
            "kind": Kind(entry.get("kind", Kind.CATALOGUE)),
            "codes": tuple(entry["codes"]),
            "ladder": tuple(entry.get("ladder", ())),
            "detail": re.compile(entry["detail"]) if "detail" in entry else None,
        }
    )
    assert set(rule.ladder) <= OPERATIONS, f"{rule.id}: no such operation"
    assert rule.scope in {"gpu", "node"}, f"{rule.id}: no such scope"
    assert rule.drain in {"immediate", "after_completion", "after_timeout"}, f"{rule.id}: no such drain"
    return rule


def _correlation(entry: Mapping[str, Any]) -> Correlation:
    place = entry.get("same_place")
    return Correlation(
        **dict(entry) | {"codes": tuple(entry["codes"]), "same_place": re.compile(place) if place else None}
    )
