"""What a job is to do, as it was asked and checked: from a file or from the API's own JSON, with the place of a fault.

What concerns the shape alone is checked here; whether an offer exists, what it
costs and who may use it is for `submitting`.
"""

import difflib
import itertools
import json
import math
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.utils.translation import gettext, gettext_lazy
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from marketplace.errors import MarketError
from marketplace.jobs import schema
from marketplace.jobs.reading import Document, Fault, Path, Unreadable, document_of
from marketplace.money import plain, typed_micros
from provisioning.agent import signing
from provisioning.work import Counters

FAULTS_MAX = 20
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
SHIFTS = {"M": 20, "G": 30, "T": 40}
DEADLINE_MAX = timedelta(days=90)
TIME_LIMIT_MAX_S = 30 * 86_400
# The largest whole number that RFC 8785 writes.
EXACT_MAX = 2**53 - 1
KINDS = ("array", "parameters", "matrix")
# The variables that tell a task who it is.
OWN_VARIABLES = ("GPUMARKET_JOB", "GPUMARKET_TASK", "GPUMARKET_ATTEMPT")
_CHECK = Draft202012Validator(schema.JOB)


class BadSpec(MarketError):
    """The job file does not make sense; `faults` say what to change, and where."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = list(faults)


@dataclass(frozen=True)
class Spec:
    """One job as it was asked for. `document` is what is kept of it; `path` and `source` say where it stands."""

    document: Mapping[str, Any]
    tasks: Sequence[Mapping[str, str]]
    offer: str
    name: str
    image: str
    command: Sequence[str]
    gpus: int
    replicas: int
    env: Mapping[str, str]
    inputs: str
    outputs: Sequence[str]
    checkpoint: str
    has_network: bool
    volumes: Sequence[Mapping[str, Any]]
    parallel: int | None
    retries: int
    time_limit_s: int | None
    disk_bytes: int
    market: str
    max_price_micros: int | None
    reservation: str
    deadline: datetime | None
    priority: int
    needs: Sequence[str]
    max_cost_micros: int | None
    contract: str
    counters: Counters | None
    path: Path = ()
    source: Document = field(default_factory=lambda: Document(None))

    @property
    def sha256(self) -> str:
        """The SHA-256 of the document's canonical text (RFC 8785)."""
        return signing.digest(self.document)

    def fault(self, name: str, detail: str) -> Fault:
        """Return a fault of one of its fields, with its place."""
        path = (*self.path, name) if name else self.path
        return Fault(path, self.source.line_of(path), detail)


def from_file(text: str, *, at: datetime) -> list[Spec]:
    """Return the jobs of a file, or raise BadSpec with the lines of its faults. Moments like +6h count from `at`."""
    try:
        document = document_of(text)
    except Unreadable as unreadable:
        raise BadSpec([unreadable.fault]) from unreadable
    values, path = document.values, ()
    if isinstance(values, dict) and "jobs" in values:
        if unknown := sorted(set(values) - {"jobs"}):
            raise BadSpec([_unknown(document, (), name, ["jobs"]) for name in unknown])
        return _all(document, values["jobs"], ("jobs",), at)
    return _all(document, [values], path, at, is_single=True)


def from_values(jobs: Any, *, at: datetime) -> list[Spec]:
    """Return the jobs of a list of plain values, or raise BadSpec with the paths of its faults."""
    return _all(Document(jobs), _exact(jobs), ("jobs",), at)


def _exact(value: Any) -> Any:
    """Return JSON's own numbers as they were written: whole ones whole, others as decimals."""
    if isinstance(value, dict):
        return {name: _exact(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_exact(inner) for inner in value]
    return Decimal(repr(value)) if isinstance(value, float) and math.isfinite(value) else value


def _all(document: Document, jobs: Any, path: Path, at: datetime, *, is_single: bool = False) -> list[Spec]:
    if not isinstance(jobs, list) or not jobs:
        raise BadSpec([Fault(path, document.line_of(path), gettext("Here is to be a list of jobs, at least one."))])
    if len(jobs) > schema.JOBS_MAX:
        text = gettext("At most %(most)s jobs are submitted at once.") % {"most": schema.JOBS_MAX}
        raise BadSpec([Fault(path, document.line_of(path), text)])
    faults: list[Fault] = []
    specs: list[Spec] = []
    for number, job in enumerate(jobs):
        place = path if is_single else (*path, number)
        found = list(itertools.islice(_faults(document, job, place), FAULTS_MAX - len(faults)))
        faults += found
        if len(faults) >= FAULTS_MAX:
            break
        if not found:
            found = _unwritable(document, job, place)
            faults += found
        if not found:
            try:
                specs.append(_read(document, job, place, at))
            except BadSpec as refusal:
                faults += refusal.faults
    if faults:
        raise BadSpec(sorted(faults, key=lambda fault: fault.line or 0)[:FAULTS_MAX])
    if sum(len(spec.tasks) for spec in specs) > schema.TASKS_MAX:
        text = gettext("At most %(most)s tasks are submitted at once.") % {"most": schema.TASKS_MAX}
        raise BadSpec([Fault(path, document.line_of(path), text)])
    return specs


def _faults(document: Document, job: Any, path: Path) -> Iterator[Fault]:
    for error in _CHECK.iter_errors(job):
        place = (*path, *error.absolute_path)
        is_name = "propertyNames" in error.absolute_schema_path
        yield from _said(document, error, (*place, str(error.instance)) if is_name else place)


def _unwritable(document: Document, job: Any, path: Path) -> list[Fault]:
    """Find what no database and no program can take: NUL, and half of a surrogate pair."""
    for name, value in job.items():
        text = json.dumps(_plain(value), ensure_ascii=False)
        if "\\u0000" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            detail = gettext("There is a character in it that is none.")
            return [Fault((*path, name), document.line_of((*path, name)), detail)]
    return []


def _said(document: Document, error: ValidationError, path: Path) -> Iterator[Fault]:
    """Say in our words what the schema refuses."""
    rule, wanted = str(error.validator), error.validator_value
    if rule == "additionalProperties":
        known = list(error.schema["properties"])
        for name in sorted(set(error.instance) - set(known)):
            yield _unknown(document, path, name, known)
        return
    if rule == "required":
        for name in [name for name in wanted if name not in error.instance]:
            yield Fault((*path, name), document.line_of(path), gettext("“%(name)s” is missing.") % {"name": name})
        return
    yield Fault(path, document.line_of(path), _rule_broken(rule, wanted, error.instance))


TYPES = {
    "string": gettext_lazy("a text"),
    "integer": gettext_lazy("a whole number"),
    "number": gettext_lazy("a number"),
    "array": gettext_lazy("a list"),
    "object": gettext_lazy("names with values"),
    "boolean": gettext_lazy("true or false"),
}
LEAST = ("minimum", "minItems", "minLength", "minProperties")
MOST = ("maximum", "maxItems", "maxLength", "maxProperties")


def _rule_broken(rule: str, wanted: Any, given: Any) -> str:
    if rule == "type":
        kinds = gettext(" or ").join(str(TYPES[kind]) for kind in ([wanted] if isinstance(wanted, str) else wanted))
        text = gettext("This is to be %(kinds)s.")
        if isinstance(given, bool):
            text = gettext("This is to be %(kinds)s; write it in quotes.")
        text = text % {"kinds": kinds}
    elif rule == "enum":
        text = gettext("Choose one of %(known)s.") % {"known": ", ".join(wanted)}
    elif rule in LEAST:
        text = gettext("This is to be at least %(least)s.") % {"least": wanted}
    elif rule in MOST:
        text = gettext("This is to be at most %(most)s.") % {"most": wanted}
    elif rule == "uniqueItems":
        text = gettext("Name each once.")
    else:
        text = _shape(wanted)
    return text


def _shape(pattern: Any) -> str:
    shapes = {
        schema.NAME: gettext(
            "Use 1 to 63 lower-case letters, digits and hyphens; begin and end with a letter or digit."
        ),
        schema.VARIABLE: gettext(
            "A variable's name has letters, digits and underscores and does not begin with a digit."
        ),
        schema.DURATION: gettext("Write a whole number with s, m, h or d, such as 90s, 15m, 2h or 1d."),
        schema.SIZE: gettext("Write a whole number with M, G or T (MiB, GiB, TiB), such as 500M, 20G or 1T."),
        schema.MONEY: gettext("Write an amount such as 2.50."),
        schema.RELATIVE: gettext("Name a path inside the work folder: neither from the root nor with “..”."),
    }
    return shapes.get(str(pattern), gettext("This does not have the right form."))


def _unknown(document: Document, path: Path, name: str, known: Sequence[str]) -> Fault:
    near = difflib.get_close_matches(name, known, n=1)
    detail = gettext("There is no field “%(name)s”.") % {"name": name[:80]}
    if near:
        detail = gettext("There is no field “%(name)s”; did you mean “%(near)s”?") % {"name": name, "near": near[0]}
    return Fault((*path, name), document.line_of((*path, name)), detail)


def _read(document: Document, job: Mapping[str, Any], path: Path, at: datetime) -> Spec:
    """Return a job whose shape is right; what its fields say together is checked here."""

    def refuse(name: str, detail: str) -> BadSpec:
        return BadSpec([Fault((*path, name), document.line_of((*path, name)), detail)])

    for name, detail in _contradictions(job):
        raise refuse(name, detail)
    try:
        deadline = _deadline(job.get("deadline"), at)
    except ValueError as error:
        raise refuse("deadline", str(error)) from error
    return replace(_spec(job, deadline), tasks=_tasks(job), path=path, source=document)


def of(document: Mapping[str, Any], *, deadline: datetime | None) -> Spec:
    """Return what a job's own document says, without its tasks."""
    return _spec(document, deadline)


def _contradictions(job: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say of which fields the values cannot be, and why."""
    given = [kind for kind in KINDS if kind in job]
    if len(given) > 1:
        yield given[1], gettext("Say one of %(known)s.") % {"known": ", ".join(KINDS)}
    if "matrix" in job and math.prod(map(len, job["matrix"].values())) > schema.TASKS_MAX:
        yield "matrix", gettext("At most %(most)s tasks are submitted at once.") % {"most": schema.TASKS_MAX}
    for name in ("env", *given):
        if taken := set(OWN_VARIABLES) & _names(job.get(name)):
            yield name, gettext("%(name)s is set by us.") % {"name": min(taken)}
    for name in ("max_price", "max_cost"):
        if name in job and _micros(job[name]) is None:
            yield name, _shape(schema.MONEY)
    if not job.get("checkpoint", "x").strip("./"):
        yield "checkpoint", _shape(schema.RELATIVE)
    if "time_limit" in job and _seconds(job["time_limit"]) > TIME_LIMIT_MAX_S:
        yield "time_limit", gettext("At most %(days)s days.") % {"days": TIME_LIMIT_MAX_S // 86_400}


def _deadline(text: str | None, at: datetime) -> datetime | None:
    """Return the moment of a deadline, or raise ValueError with what is wrong."""
    if text is None:
        return None
    try:
        deadline = _moment(text, at)
    except (ValueError, OverflowError) as error:
        raise ValueError(gettext("Write a moment such as 2026-12-01T18:00Z, or +6h from now.")) from error
    if not at < deadline <= at + DEADLINE_MAX:
        raise ValueError(gettext("A deadline is later than now, and at most 90 days away."))
    return deadline


def _spec(job: Mapping[str, Any], deadline: datetime | None) -> Spec:
    kept = {name: _plain(value) for name, value in job.items() if value is not None}
    if deadline is not None:
        kept["deadline"] = deadline.isoformat().replace("+00:00", "Z")
    for name in ("max_price", "max_cost"):
        if name in kept:
            kept[name] = plain(_micros(job[name]) or 0)
    command = job.get("command", [])
    return Spec(
        document=kept,
        tasks=(),
        offer=job["offer"],
        name=job.get("name", "job"),
        image=job.get("image", ""),
        command=["/bin/sh", "-c", command] if isinstance(command, str) else [str(part) for part in command],
        gpus=job.get("gpus", 1),
        replicas=job.get("replicas", 1),
        env={name: str(value) for name, value in job.get("env", {}).items()},
        inputs=job.get("inputs", ""),
        outputs=[_inside(one) for one in job.get("outputs", [])],
        checkpoint=_inside(job["checkpoint"]) if "checkpoint" in job else "",
        has_network=job.get("network", True),
        volumes=job.get("volumes", []),
        parallel=job.get("parallel"),
        retries=job.get("retries", 0),
        time_limit_s=_seconds(job["time_limit"]) if "time_limit" in job else None,
        disk_bytes=_bytes(job.get("disk", schema.DISK_DEFAULT)),
        market=job.get("market", "on_demand"),
        max_price_micros=_micros(job["max_price"]) if "max_price" in job else None,
        reservation=job.get("reservation", ""),
        deadline=deadline,
        priority=job.get("priority", 0),
        needs=job.get("needs", []),
        max_cost_micros=_micros(job["max_cost"]) if "max_cost" in job else None,
        contract=job.get("contract", ""),
        counters=Counters.of(job.get("counters")),
    )


def _inside(path: str) -> str:
    """Return a path of the work folder in its shortest form; the folder itself means all that is in it."""
    return posixpath.normpath(path) if path.strip("./") else "**"


def _tasks(job: Mapping[str, Any]) -> Sequence[Mapping[str, str]]:
    """Return the variables of each task."""
    if "parameters" in job:
        return [{name: str(value) for name, value in one.items()} for one in job["parameters"]]
    if "matrix" in job:
        names, values = list(job["matrix"]), list(job["matrix"].values())
        return [dict(zip(names, map(str, one), strict=True)) for one in itertools.product(*values)]
    return [{}] * job.get("array", 1)


def _names(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value)
    return {name for one in value for name in one} if isinstance(value, list) else set()


def _plain(value: Any) -> Any:
    """Return a value as JSON keeps it. A number that RFC 8785 has no form for is kept as the text that a task gets."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    is_too_long = isinstance(value, int) and not -EXACT_MAX <= value <= EXACT_MAX
    return str(value) if isinstance(value, Decimal) or is_too_long else value


def _micros(value: Any) -> int | None:
    # An amount is read in whichever way its number is written.
    micros = typed_micros(str(Decimal(value) if isinstance(value, Decimal) else value))
    return micros if micros else None


def _seconds(text: str) -> int:
    return int(text[:-1]) * UNITS[text[-1]]


def _bytes(text: str) -> int:
    return int(text[:-1]) << SHIFTS[text[-1]]


def _moment(text: str, at: datetime) -> datetime:
    """Return the moment that a deadline names; without a zone it is in UTC. Raises ValueError."""
    if text.startswith("+"):
        if not text[1:-1].isdigit() or text[-1] not in UNITS or len(text) > 9:
            raise ValueError(text)
        return at + timedelta(seconds=_seconds(text[1:]))
    found = datetime.fromisoformat(text.strip().replace(" ", "T", 1))
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
