"""What a health event means: a pure function of the event, what else was seen, and the table.

The action is NVIDIA's own verdict where there is one, else what the catalogue
recommends; a fact (a counter, the bus) is never talked down by either. The
severity is the highest of all of them. Faults of programs condemn no hardware
alone, but they are counted.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from provisioning.health.rules import Action, Correlation, Kind, Rule, Severity, Table

# What was seen so close together tells of one fault: the error, the counters and the verdict that were read after it.
TOGETHER = timedelta(minutes=5)
# "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"
VERDICT_IN_WORDS = re.compile(r"to 0x([0-9a-fA-F]+)")


@dataclass(frozen=True)
class Seen:
    """One event of a node. `gpu` is a UUID, empty where it concerns the node."""

    code: str
    gpu: str
    at: datetime
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """What is done, how bad it is, how far it reaches, and which rule of which table decided."""

    action: Action
    severity: Severity
    scope: str
    rule: Rule
    table_version: str


def classify(event: Seen, history: Sequence[Seen], table: Table) -> Verdict:
    """Decide on an event. `history`: what else its node reported in the last seven days, in any order."""
    own = _rule_of(event, table)
    together = [
        _rule_of(seen, table)
        for seen in history
        if seen is not event and seen.gpu == event.gpu and abs(seen.at - event.at) <= TOGETHER
    ]
    # What stands beside an event counts only where the event itself is more than a note.
    rules = [own, *together] if own.action != Action.RECORD or own.kind == Kind.CATALOGUE else [own]
    rules += _correlated(event, history, table)
    decisive = max(_eligible(own, rules), key=lambda rule: rule.severity)
    return Verdict(
        action=decisive.action,
        severity=max(rule.severity for rule in rules),
        scope=decisive.scope if event.gpu else "node",
        rule=decisive,
        table_version=table.version,
    )


def _eligible(own: Rule, rules: Sequence[Rule]) -> Iterable[Rule]:
    """Return the rules that may decide the action: a verdict that asks for something silences the catalogue."""
    if any(rule.kind == Kind.VERDICT and rule.action != Action.RECORD for rule in rules):
        return [rule for rule in rules if rule.kind != Kind.CATALOGUE]
    # Each event decides for itself; only verdicts and facts speak for their neighbours.
    return [own, *(rule for rule in rules[1:] if rule.kind == Kind.FACT or not rule.codes)]


def _rule_of(event: Seen, table: Table) -> Rule:
    """Return the rule of one event by itself. XID 154 carries the verdict in its words."""
    if event.code == "xid:154" and (said := VERDICT_IN_WORDS.search(event.detail)):
        return table.find(code=f"recovery:{int(said[1], 16)}")
    return table.find(code=event.code, detail=event.detail)


def _correlated(event: Seen, history: Sequence[Seen], table: Table) -> list[Rule]:
    """Return what the event means together with earlier ones of its kind."""
    return [
        table.named(correlation.rule)
        for correlation in table.correlations
        if event.code in correlation.codes and event.gpu and _is_met(correlation, event, history)
    ]


def _is_met(correlation: Correlation, event: Seen, history: Sequence[Seen]) -> bool:
    since = event.at - timedelta(hours=correlation.window_hours)
    alike = [
        seen
        for seen in history
        if seen is not event and seen.code in correlation.codes and since <= seen.at <= event.at
    ]
    if correlation.not_on_gpus and len({event.gpu, *(seen.gpu for seen in alike)}) >= correlation.not_on_gpus:
        return False
    here = [seen for seen in (*alike, event) if seen.gpu == event.gpu]
    if correlation.same_place is not None:
        place = correlation.same_place.search(event.detail)
        if place is None:
            return False
        here = [seen for seen in here if place[0] in seen.detail]
    return _bursts([seen.at for seen in here], timedelta(seconds=correlation.burst_seconds)) >= correlation.count


def _bursts(times: Iterable[datetime], apart: timedelta) -> int:
    """Count moments that are more than `apart` from the one before: what comes in a burst counts once."""
    count, last = 0, None
    for at in sorted(times):
        if last is None or at - last > apart:
            count += 1
        last = at
    return count
