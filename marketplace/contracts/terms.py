"""The terms of paying by outcome: a closed schema, checked whole, and their canonical text with its SHA-256.

Every term is written; what does not apply is null. Nothing else may be in
them, so that both sides read all that counts. The text is canonical JSON (RFC
8785): names in order, no spaces, whole numbers only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from itertools import pairwise
from typing import Any

from django.utils.translation import gettext as _

from billing.outcomes.words import price_micros
from marketplace.contracts.shape import Check, by_kind, choice, fail, listed, made_of, maybe, number, shaped, text
from provisioning.agent import signing

SCHEMA = "gpumarket.terms/3"
# Versions of the first schema do not say what work may cost: what holds for them is written in `FIRST_WORK`.
FIRST_SCHEMA = "gpumarket.terms/1"
KINDS = ("per_task", "per_unit", "guarantee", "revenue_share")
CLAIMED_KINDS = ("per_task", "per_unit")
VERIFIERS = ("outputs", "command", "rerun", "customer", "third_party")
EVIDENCE = ("exit_code", "outputs", "inputs", "logs", "counter", "gpu_uuids", "node_signature")
PERIODS = ("day", "month")
SELLER, PLATFORM = "seller", "platform"
BP = 10_000
DAY_S = 24 * 3600
# What the card processor lets nobody keep longer: all windows of a claim together end before it.
WINDOWS_MAX = timedelta(days=60)
CLAWBACK_MAX_S = 90 * DAY_S
MICROS_MAX = 10**15
# What a seller may let the platform pay for results of one customer that were not paid for.
UNPAID_MICROS_MAX = 10**10
# What one result, and all of a job together, may cost: sums of it still fit where they are kept.
RESULT_MICROS_MAX = 10**18
KEY_SHAPE = re.compile(r"[0-9a-f]{64}")
METERED_COST = "metered_cost"
COUNTED_PER_S_MAX = 10**12
COUNTER_SHAPE = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,99}")
PATH_SHAPE = re.compile(r"(?!/)(?!.*(^|/)\.\.(/|$))[^\x00]{1,255}")
ORGANIZATION_SHAPE = re.compile(r"org_[a-z2-7]{20}")

# Small enough for whatever was promised without a bound: an hour on a node of eight, and no more than some of them.
FIRST_WORK: Mapping[str, Any] = {
    "offers": None, "gpus": 8, "seconds": 3600, "attempts": 21, "attempt_micros": 40_000_000,
    "unpaid_micros": 200_000_000,
}  # fmt: skip


def canonical(value: Any) -> str:
    """Return the one text of a JSON value (RFC 8785). Raises ValueError for what that has no form for."""
    return signing.canonical(value).decode()


def digest(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return sha256(text.encode()).hexdigest()


PUBLIC_KEY = shaped(KEY_SHAPE, "an Ed25519 public key of 64 hexadecimal digits")
ORGANIZATION = shaped(ORGANIZATION_SHAPE, "the id of an organization")
OFFERS = listed(text(1, 64), least=1, most=100)
SECONDS = number(0, int(WINDOWS_MAX.total_seconds()))
PARTY = made_of({"name": text(1, 100), "organization": maybe(ORGANIZATION), "public_key": PUBLIC_KEY})
RUNS = {
    "timeout_s": number(1, DAY_S),
    "runs": number(1, 5),
    "on_silence": choice(("pass", "fail")),
}
FIELDS: dict[str, Check] = {
    "schema": choice((SCHEMA,)),
    "kind": choice(KINDS),
    "currency": shaped(re.compile(r"[A-Z]{3}"), "the code of a currency"),
    "counts": text(1, 2000),
    "unit": made_of(
        {
            "name": text(1, 40),
            "per": choice((1, 1000, 1_000_000)),
            "price_micros": number(0, MICROS_MAX),
            "most": number(1, 10**12),
        }
    ),
    "measured": maybe(
        by_kind(
            {
                "output": {"path": shaped(PATH_SHAPE, "a path within the outputs")},
                "counter": {
                    "name": shaped(COUNTER_SHAPE, "the name of a counter"), "most_per_s": number(1, COUNTED_PER_S_MAX),
                },
                "claim": {},
            }
        )
    ),
    "verifier": by_kind(
        {
            "outputs": {},
            "command": {**RUNS, "gpus": number(1, 8)},
            "rerun": {**RUNS, "rate_bps": number(1, BP)},
            "customer": {},
            "third_party": {
                "party": PARTY, "answer_within_s": number(1, 30 * DAY_S), "on_silence": choice(("pass", "fail")),
            },
        }
    ),
    "evidence": listed(choice(EVIDENCE), most=len(EVIDENCE)),
    "acceptance": made_of({"window_s": SECONDS, "on_silence": choice(("accept", "reject"))}),
    "disputes": made_of(
        {
            "window_s": SECONDS,
            "decided_by": choice(("operator", "third_party")),
            "arbiter": maybe(PARTY),
            "decide_within_s": number(60, int(WINDOWS_MAX.total_seconds())),
            "if_undecided": choice(("pay", "refund")),
        }
    ),
    "retries": number(0, 10),
    "work": maybe(
        made_of(
            {
                "offers": maybe(OFFERS),
                "gpus": number(1, 100_000),
                "seconds": number(1, 30 * DAY_S),
                "attempts": number(1, 100),
                "attempt_micros": number(1, MICROS_MAX),
                "unpaid_micros": number(1, UNPAID_MICROS_MAX),
            }
        )
    ),
    "deadline": maybe(
        made_of(
            {
                "within_s": number(1, 365 * DAY_S),
                "late": listed(
                    made_of({"after_s": number(0, 365 * DAY_S), "price_bps": number(0, BP)}), least=1, most=10
                ),
            }
        )
    ),
    "cap": maybe(made_of({"period": choice(PERIODS), "micros": number(1, MICROS_MAX)})),
    "floor": maybe(made_of({"period": choice(PERIODS), "micros": number(1, MICROS_MAX)})),
    "clawback_s": number(0, CLAWBACK_MAX_S),
    "shares": listed(made_of({"to": text(1, 32), "bps": number(1, BP)}), least=1, most=10),
    "guarantee": maybe(
        made_of(
            {
                "metric": choice(("throughput", "availability", "gpu_health")),
                "counter": maybe(shaped(COUNTER_SHAPE, "the name of a counter")),
                "floor_milli": number(1, 10**15),
                "curve": listed(
                    made_of({"below_bps": number(1, BP), "credit_bps": number(1, BP)}), least=1, most=10
                ),
                "cap_bps": number(1, BP),
                "seller_bps": number(0, BP),
            }
        )
    ),
    "revenue": maybe(
        made_of(
            {
                "share_bps": number(1, BP),
                "period": choice(PERIODS),
                "minimum_micros": number(0, MICROS_MAX),
                "cap_micros": maybe(number(1, MICROS_MAX)),
                "true_up": choice(("none", METERED_COST)),
                "statement_within_s": number(3600, 60 * DAY_S),
                "if_overdue": choice(("last_statement", "minimum", METERED_COST)),
                "covers": maybe(made_of({"offers": maybe(OFFERS), "gpus": number(1, 100_000)})),
            }
        )
    ),
}  # fmt: skip
WHOLE = made_of(FIELDS)


@dataclass(frozen=True)
class Terms:
    """Terms that were checked. Questions about them are asked here, so that every door reads them alike."""

    value: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.value[name]

    @property
    def kind(self) -> str:
        return str(self.value["kind"])

    @property
    def currency(self) -> str:
        return str(self.value["currency"])

    @property
    def verifier(self) -> str:
        return str(self.value["verifier"]["kind"])

    @property
    def is_counted(self) -> bool:
        """Whether units are counted by the platform, from what a job left or did."""
        measured = self.value["measured"]
        return measured is not None and measured["kind"] != "claim"

    @property
    def pays_tasks(self) -> bool:
        """Whether jobs can be submitted under them: results of tasks are paid, as they are or by what is counted."""
        return self.kind in CLAIMED_KINDS and (self.value["measured"] is None or self.is_counted)

    @property
    def text(self) -> str:
        return canonical(self.value)

    @property
    def sha256(self) -> str:
        return digest(self.text)

    @property
    def most_micros(self) -> int:
        """The most that one subject can cost: its most units at the whole price."""
        return self.amount_micros(units=int(self.value["unit"]["most"]))

    def price_bps(self, late_s: int) -> int:
        """Return what is left of the price so many seconds after the deadline; zero and less is in time."""
        found = BP
        for step in (self.value["deadline"] or {"late": []})["late"]:
            if late_s > step["after_s"]:
                found = step["price_bps"]
        return int(found)

    def amount_micros(self, *, units: int, bps: int = BP) -> int:
        """Return what so many units cost at a part of the price: rounded half up once, no more units than the most."""
        unit = self.value["unit"]
        return price_micros(min(units, int(unit["most"])), int(unit["price_micros"]), per=int(unit["per"]), bps=bps)

    @property
    def period(self) -> str:
        """In which stretches its cap and floor count: `day`, `month`, or empty where it has neither."""
        either = self.value["cap"] or self.value["floor"]
        return str(either["period"]) if either else ""

    def seconds(self, term: str, name: str) -> timedelta:
        """Return a window of the terms."""
        return timedelta(seconds=int(self.value[term][name]))

    @property
    def clawback(self) -> timedelta:
        return timedelta(seconds=int(self.value["clawback_s"]))

    @property
    def work(self) -> Mapping[str, Any] | None:
        """Where its work may run and how much of it there may be; None where no job runs under it."""
        if self.value["schema"] == FIRST_SCHEMA:
            return FIRST_WORK if self.kind in CLAIMED_KINDS else None
        found: Mapping[str, Any] | None = self.value["work"]
        return found

    @property
    def covers(self) -> Mapping[str, Any] | None:
        """What can be rented under a share of revenue; None for nothing, as in schemas before the third."""
        found: Mapping[str, Any] | None = (self.value["revenue"] or {}).get("covers")
        return found

    @property
    def platform_bps(self) -> int:
        """What part of the price is the platform's, which pays for the hours."""
        return sum(int(share["bps"]) for share in self.value["shares"] if share["to"] == PLATFORM)

    @property
    def third_parties(self) -> list[Mapping[str, str]]:
        """Who else has a say by a signature: the verifier that the terms name, and the arbiter."""
        either = (self.value["verifier"].get("party"), self.value["disputes"]["arbiter"])
        return [party for party in either if party is not None]

    @property
    def beneficiaries(self) -> frozenset[str]:
        """Who gets a share, by the ids of organizations; the seller and the platform by their words."""
        return frozenset(share["to"] for share in self.value["shares"])


def checked(value: Any, *, seller: str) -> Terms:
    """Return terms that are whole and make sense, or raise BadOrder naming the place, such as `shares/0/bps`.

    `seller` is the id of the organization that sells. Whoever earns does not
    verify: a verifier or an arbiter of the seller, or of somebody with a share, is refused.
    """
    WHOLE(value, "")
    terms = Terms(value)
    _check_shares(terms)
    _check_kind(terms)
    _check_work(terms)
    _check_windows(terms)
    _check_deadline(terms)
    _check_independent(terms, seller)
    return terms


def of(value: Mapping[str, Any]) -> Terms:
    """Return the terms of a version, which were checked when it was written."""
    return Terms(value)


def renewed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the terms of a version as the next one may say them: in the schema of today."""
    old = Terms(value)
    revenue = value["revenue"] and {**value["revenue"], "covers": old.covers}
    return {**value, "schema": SCHEMA, "work": old.work and dict(old.work), "revenue": revenue}


def _check_shares(terms: Terms) -> None:
    names = [share["to"] for share in terms["shares"]]
    for index, name in enumerate(names):
        if name not in (SELLER, PLATFORM) and not ORGANIZATION_SHAPE.fullmatch(name):
            fail(f"shares/{index}/to", _("Write “seller”, “platform” or the id of a supplier."))
        if name in names[:index]:
            fail(f"shares/{index}/to", _("This party has a share already."))
    total = sum(share["bps"] for share in terms["shares"])
    if total != BP:
        fail("shares", _("Shares add up to 10,000 basis points; these add up to %(total)s.") % {"total": f"{total:,}"})


def _check_kind(terms: Terms) -> None:
    kind = terms.kind
    for owner, name in (("guarantee", "guarantee"), ("revenue_share", "revenue")):
        if (terms[name] is not None) != (kind == owner):
            fail(name, _("This term belongs to contracts of another kind, or this kind needs it."))
    if (terms["measured"] is not None) != (kind == "per_unit"):
        fail("measured", _("Contracts per unit say how units are measured, and no others."))
    if kind == "per_task" and (terms["unit"]["per"], terms["unit"]["most"]) != (1, 1):
        fail("unit", _("A task is one unit: “per” and “most” are 1."))
    if kind in CLAIMED_KINDS and terms["unit"]["price_micros"] < 1:
        fail("unit/price_micros", _("Say what a unit costs."))
    if kind in CLAIMED_KINDS and terms.most_micros < 1:
        fail("unit/price_micros", _("All units of a result together cost less than can be booked; ask for more."))
    if terms.most_micros > RESULT_MICROS_MAX:
        fail("unit/most", _("So many units at this price are more than can be booked; lower one of them."))
    _check_covered(terms)
    if guarantee := terms["guarantee"]:
        if (guarantee["metric"] == "throughput") != (guarantee["counter"] is not None):
            fail("guarantee/counter", _("A guaranteed throughput names the counter that measures it, and no other."))
        _check_falling("guarantee/curve", [(one["below_bps"], one["credit_bps"]) for one in guarantee["curve"]])


def _check_work(terms: Terms) -> None:
    """The hours of a job are the platform's to pay, so terms under which jobs run say how many there may be."""
    work = terms.work
    if work is None:
        if terms.is_counted:
            fail("work", _("Its units are counted from jobs: say where they may run, and how much of it."))
        return
    if terms.kind not in CLAIMED_KINDS:
        fail("work", _("This term belongs to contracts of another kind, or this kind needs it."))
    if work["attempts"] <= terms["retries"]:
        fail("work/attempts", _("Retries are attempts, too: say %(least)s or more.") % {"least": terms["retries"] + 1})
    if work["unpaid_micros"] < work["attempt_micros"]:
        fail("work/unpaid_micros", _("No attempt could start: say no less than “attempt_micros”."))


def _check_covered(terms: Terms) -> None:
    """The metered cost is that of what is rented under a share of revenue: without any it would always be nothing."""
    revenue = terms["revenue"]
    if revenue is None:
        return
    for name in ("true_up", "if_overdue"):
        if revenue[name] == METERED_COST and terms.covers is None:
            fail(f"revenue/{name}", _("Say under “covers” what is rented under it: else there is no metered cost."))
    if revenue["cap_micros"] is not None and revenue["minimum_micros"] > revenue["cap_micros"]:
        fail("revenue/minimum_micros", _("The minimum lies above the cap."))


def _check_falling(place: str, curve: list[tuple[int, int]]) -> None:
    """A curve is written from the mildest shortfall to the worst: each step is lower and credits more."""
    for index, (before, after) in enumerate(pairwise(curve), start=1):
        if not (after[0] < before[0] and after[1] > before[1]):
            fail(f"{place}/{index}", _("Each step is below the one before it, and credits more."))


def _check_windows(terms: Terms) -> None:
    verifier, disputes = terms["verifier"], terms["disputes"]
    total = terms["acceptance"]["window_s"] + disputes["window_s"] + disputes["decide_within_s"]
    total += verifier.get("timeout_s", 0) * verifier.get("runs", 0) + verifier.get("answer_within_s", 0)
    if timedelta(seconds=total) > WINDOWS_MAX:
        fail("disputes", _("Verifying, accepting, disputing and deciding take 60 days at most; these take longer."))
    if terms.verifier == "customer" and not terms["acceptance"]["window_s"]:
        fail("acceptance/window_s", _("Give the customer time to look at it."))
    if (disputes["decided_by"] == "third_party") != (disputes["arbiter"] is not None):
        fail("disputes/arbiter", _("Name the arbiter where a third party decides, and only there."))


def _check_deadline(terms: Terms) -> None:
    for index, (before, after) in enumerate(pairwise((terms["deadline"] or {"late": []})["late"]), start=1):
        if not (after["after_s"] > before["after_s"] and after["price_bps"] < before["price_bps"]):
            fail(f"deadline/late/{index}", _("Each step is later than the one before it, and leaves less."))
    cap, floor = terms["cap"], terms["floor"]
    if cap and floor and cap["period"] != floor["period"]:
        fail("floor/period", _("Cap and floor are of the same period."))
    if cap and floor and floor["micros"] > cap["micros"]:
        fail("floor/micros", _("The floor lies above the cap."))


def _check_independent(terms: Terms, seller: str) -> None:
    earning = {seller, *terms.beneficiaries}
    party, arbiter = terms["verifier"].get("party"), terms["disputes"]["arbiter"]
    for place, one in (("verifier/party", party), ("disputes/arbiter", arbiter)):
        if one and one["organization"] in earning:
            fail(f"{place}/organization", _("Whoever earns by the contract does not verify or decide."))
    if party and arbiter and party["public_key"] == arbiter["public_key"]:
        fail("disputes/arbiter/public_key", _("Whoever gave the verdict does not decide about it."))
