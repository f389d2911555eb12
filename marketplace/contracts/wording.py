"""Terms as people read them: one sentence for each, in the reader's language, in the same order everywhere."""

from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Any

from django.utils.dateparse import parse_datetime
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from marketplace.contracts.terms import BP, METERED_COST, PLATFORM, SELLER, Terms
from marketplace.models import Organization
from marketplace.money import shown

DAY_S, HOUR_S, MINUTE_S = 86_400, 3600, 60
PERIODS: Mapping[str, Promise] = {"day": gettext_lazy("a day (UTC)"), "month": gettext_lazy("a month (UTC)")}
# Sellers name their own units; these are the usual ones.
UNITS: Mapping[str, Promise] = {
    "task": gettext_lazy("task"),
    "tokens": gettext_lazy("tokens"),
    "images": gettext_lazy("images"),
    "frames": gettext_lazy("frames"),
}
EVIDENCE: Mapping[str, Promise] = {
    "exit_code": gettext_lazy("exit code"),
    "outputs": gettext_lazy("digests of its outputs"),
    "inputs": gettext_lazy("digests of its inputs"),
    "logs": gettext_lazy("its log"),
    "counter": gettext_lazy("counter readings"),
    "gpu_uuids": gettext_lazy("the GPUs it ran on"),
    "node_signature": gettext_lazy("the node's signature"),
}

# What a claim rests on, in the order in which it is read; a seller's own evidence keeps its own names.
PROOF: Mapping[str, Promise] = {
    "job": gettext_lazy("Job"),
    "task": gettext_lazy("Task"),
    "attempt": gettext_lazy("Attempt"),
    "instance": gettext_lazy("Instance"),
    "exit_code": gettext_lazy("Exit code"),
    "units": gettext_lazy("Units counted"),
    "readings": gettext_lazy("Readings of its counter"),
    "since": gettext_lazy("Its deadline counts from"),
    "ended_at": gettext_lazy("Ended"),
    "job_spec": gettext_lazy("Digest of the job's description"),
    "inputs": gettext_lazy("Digest of its inputs"),
    "outputs": gettext_lazy("Digest of its outputs"),
}


def proof(evidence: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return name and value of each piece of a claim's evidence; what is empty is left out."""
    ordered = [*(name for name in PROOF if name in evidence), *sorted(set(evidence) - set(PROOF))]
    rows = [(str(PROOF.get(name, name)), _written(name, evidence[name])) for name in ordered]
    return [(name, _evidence(value)) for name, value in rows if value not in (None, "")]


def _evidence(value: Any) -> str:
    """Return a piece of evidence in words; of readings the first and the last of each replica."""
    is_read = isinstance(value, list) and all(isinstance(one, dict) and {"first", "last"} <= set(one) for one in value)
    return ", ".join(f"{one['first']} → {one['last']}" for one in value) if is_read else str(value)


def _written(name: str, value: Any) -> Any:
    """Return a piece of evidence as people read it: moments to the second, in UTC."""
    at = parse_datetime(value) if name in ("since", "ended_at") and isinstance(value, str) else None
    return value if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def sentences(terms: Terms) -> list[tuple[str, str]]:
    """Return name and sentence of each term that applies to contracts of this kind."""
    kinds = {"guarantee": _of_guarantee, "revenue_share": _of_revenue}
    found = kinds.get(terms.kind, _of_results)(terms)
    return [(name, said) for name, said in found if said]


def _of_results(terms: Terms) -> list[tuple[str, str]]:
    return [
        (_("Price"), _price(terms)),
        (_("At most"), _most(terms)),
        (_("Verified by"), _verifier(terms)),
        (_("Evidence"), ", ".join(str(EVIDENCE[name]) for name in terms["evidence"]) or _("none")),
        (_("Your acceptance"), _acceptance(terms)),
        (_("Disputes"), _disputes(terms)),
        (_("Retries"), _retries(terms)),
        (_("Where it runs"), _where(terms)),
        (_("How much work"), _work(terms)),
        (_("Deadline"), _deadline(terms)),
        (_("Cap"), _of_period(terms, "cap", _("At most %(amount)s %(period)s; what is beyond it is free."))),
        (
            _("Minimum"),
            _of_period(terms, "floor", _("At least %(amount)s %(period)s; what is short of it is charged.")),
        ),
        (_("Claw-back"), _clawback(terms)),
        (_("Who gets it"), _shares(terms)),
    ]


def _of_guarantee(terms: Terms) -> list[tuple[str, str]]:
    rules = terms["guarantee"]
    return [
        (_("Price"), _("None of its own: you pay for the hours of the instance as always.")),
        (_("Guarantee"), _guarantee(terms)),
        (
            _("Credit at most"),
            _("%(part)s of what the hour cost, as credit within the hour after it; nobody has to ask for it.")
            % {"part": _percent(rules["cap_bps"])},
        ),
        (_("Measured by"), _measured(rules)),
        (
            _("Who bears it"),
            _("the seller %(seller)s, the platform %(platform)s")
            % {"seller": _percent(rules["seller_bps"]), "platform": _percent(BP - rules["seller_bps"])},
        ),
    ]


def _of_revenue(terms: Terms) -> list[tuple[str, str]]:
    return [
        (_("Share of revenue"), _revenue(terms)),
        (_("Rented under it"), _covers(terms)),
        (_("Who gets it"), _shares(terms)),
    ]


def price(terms: Terms) -> str:
    """Return what it costs, such as `$0.50 per task`."""
    if terms["guarantee"] is not None:
        return _("no price of its own")
    if terms["revenue"] is not None:
        return _("%(share)s of revenue") % {"share": _percent(terms["revenue"]["share_bps"])}
    unit = terms["unit"]
    words = {
        "amount": shown(unit["price_micros"], terms.currency, exact=True), "per": f"{unit['per']:,}",
        "unit": UNITS.get(unit["name"], unit["name"]),
    }  # fmt: skip
    return (_("%(amount)s per %(unit)s") if unit["per"] == 1 else _("%(amount)s per %(per)s %(unit)s")) % words


def span(seconds: int) -> str:
    """Return a length of time in its largest whole unit."""
    if seconds and seconds % DAY_S == 0:
        return ngettext("%(n)s day", "%(n)s days", seconds // DAY_S) % {"n": seconds // DAY_S}
    if seconds and seconds % HOUR_S == 0:
        return ngettext("%(n)s hour", "%(n)s hours", seconds // HOUR_S) % {"n": seconds // HOUR_S}
    if seconds and seconds % MINUTE_S == 0:
        return ngettext("%(n)s minute", "%(n)s minutes", seconds // MINUTE_S) % {"n": seconds // MINUTE_S}
    return ngettext("%(n)s second", "%(n)s seconds", seconds) % {"n": f"{seconds:,}"}


def verifier(terms: Terms) -> str:
    """Return in a few words who verifies, measures or states."""
    if terms["guarantee"] is not None:
        return _("the platform, hour by hour")
    if terms["revenue"] is not None:
        return _("your own signed statements")
    names: dict[str, Callable[[], str]] = {
        "outputs": lambda: _("exit code and outputs"),
        "command": lambda: _("your own command, on another host"),
        "rerun": lambda: _("a second run, compared"),
        "customer": lambda: _("you"),
        "third_party": lambda: str(terms["verifier"]["party"]["name"]),
    }
    return names[terms.verifier]()


def _percent(bps: int) -> str:
    whole, rest = divmod(bps, 100)
    return f"{whole}.{rest:02d} %" if rest else f"{whole} %"


def _price(terms: Terms) -> str:
    said = price(terms)
    measured = terms["measured"]
    if measured is None:
        return said
    how = {
        "output": _("counted from the output %(what)s") % {"what": measured.get("path", "")},
        "counter": _("counted by the counter %(what)s") % {"what": measured.get("name", "")},
        "claim": _("as claimed with evidence"),
    }
    return f"{said}, {how[measured['kind']]}"


def _most(terms: Terms) -> str:
    return _("%(amount)s for each result, whatever happens.") % {
        "amount": shown(terms.most_micros, terms.currency, exact=True)
    }


def _verifier(terms: Terms) -> str:
    chosen = terms["verifier"]
    answers = {"pass": _("it counts as passed"), "fail": _("it counts as not passed")}
    silence = answers.get(chosen.get("on_silence", ""), "")
    if terms.verifier == "outputs":
        return _("The control plane's own record: exit code 0, and every declared output is there with its digest.")
    if terms.verifier == "command":
        return _(
            "A command that you choose, on another host, with the outputs read-only and no network, for at most "
            "%(span)s and %(runs)s tries. Exit code 0 passes, 1 does not. Where it never answers, %(silence)s."
        ) % {"span": span(chosen["timeout_s"]), "runs": chosen["runs"], "silence": silence}
    if terms.verifier == "rerun":
        return _(
            "%(rate)s of results are run a second time on another host, and every byte is compared; the others pass "
            "by exit code and outputs. Where the second run never ends, %(silence)s."
        ) % {"rate": _percent(chosen["rate_bps"]), "silence": silence}
    if terms.verifier == "third_party":
        return _("%(name)s, by a signed verdict within %(span)s. Without one, %(silence)s.") % {
            "name": chosen["party"]["name"], "span": span(chosen["answer_within_s"]), "silence": silence,
        }  # fmt: skip
    return _("You: you accept or reject each result.")


def _acceptance(terms: Terms) -> str:
    window = terms["acceptance"]
    if not window["window_s"]:
        return _("A result that passed is accepted at once.") if window["on_silence"] == "accept" else _(
            "A result is not accepted unless you say so at once."
        )  # fmt: skip
    said = (
        _("You have %(span)s to accept, reject or dispute a result that passed; silence accepts it.")
        if window["on_silence"] == "accept"
        else _("You have %(span)s to accept a result that passed; silence rejects it.")
    )
    return said % {"span": span(window["window_s"])}


def _disputes(terms: Terms) -> str:
    rules = terms["disputes"]
    who = _("the operator") if rules["arbiter"] is None else str(rules["arbiter"]["name"])
    said = (
        _("Within %(window)s either side may contest; %(who)s decides within %(decide)s, else it is paid.")
        if rules["if_undecided"] == "pay"
        else _("Within %(window)s either side may contest; %(who)s decides within %(decide)s, else it is not paid.")
    )
    return said % {"window": span(rules["window_s"]), "who": who, "decide": span(rules["decide_within_s"])}


def _retries(terms: Terms) -> str:
    count = terms["retries"]
    if not count:
        return _("None: what does not pass is not paid.")
    return ngettext(
        "What does not pass may be tried %(n)s time more, at no price.",
        "What does not pass may be tried %(n)s times more, at no price.",
        count,
    ) % {"n": count}


def _where(terms: Terms) -> str:
    if terms.work is None:
        return ""
    if terms.work["offers"] is None:
        return _("On any offer whose attempts cost no more than that.")
    return _("On these offers alone: %(offers)s.") % {"offers": ", ".join(terms.work["offers"])}


def _work(terms: Terms) -> str:
    work = terms.work
    if work is None:
        return ""
    return _(
        "A task takes %(gpus)s, %(span)s an attempt and %(attempts)s attempts at most; an attempt costs the "
        "platform %(attempt)s at most, by the list. Once your work costs it %(unpaid)s more than results brought it, "
        "no more starts."
    ) % {
        "gpus": ngettext("%(count)s GPU", "%(count)s GPUs", work["gpus"]) % {"count": work["gpus"]},
        "span": span(work["seconds"]), "attempts": work["attempts"],
        "attempt": shown(work["attempt_micros"], terms.currency),
        "unpaid": shown(work["unpaid_micros"], terms.currency),
    }  # fmt: skip


def _deadline(terms: Terms) -> str:
    deadline = terms["deadline"]
    if deadline is None:
        return ""
    steps = [
        _("%(part)s of the price after %(span)s more")
        % {"part": _percent(one["price_bps"]), "span": span(one["after_s"])}
        if one["after_s"]
        else _("%(part)s of the price when later") % {"part": _percent(one["price_bps"])}
        for one in deadline["late"]
    ]
    return _("Within %(span)s of the order, not counting what its customer holds back itself; %(steps)s.") % {
        "span": span(deadline["within_s"]), "steps": ", ".join(steps)
    }  # fmt: skip


def _of_period(terms: Terms, name: str, said: str) -> str:
    limit = terms[name]
    if limit is None:
        return ""
    return said % {"amount": shown(limit["micros"], terms.currency), "period": PERIODS[limit["period"]]}


def _clawback(terms: Terms) -> str:
    if not terms["clawback_s"]:
        return _("None: what is paid stays paid.")
    return _("What turns out wrong within %(span)s after it was paid is given back, with its tax.") % {
        "span": span(terms["clawback_s"])
    }


def _shares(terms: Terms) -> str:
    named = {one["to"] for one in terms["shares"] if one["to"].startswith("org_")}
    names = dict(Organization.objects.filter(public_id__in=named).values_list("public_id", "name")) if named else {}
    names |= {SELLER: _("the seller"), PLATFORM: _("the platform")}
    return ", ".join(f"{names.get(one['to'], one['to'])} {_percent(one['bps'])}" for one in terms["shares"])


def _guarantee(terms: Terms) -> str:
    rules: Any = terms["guarantee"]
    names = {
        "throughput": _("throughput (%(counter)s)") % {"counter": rules["counter"]},
        "availability": _("availability"), "gpu_health": _("GPU health"),
    }  # fmt: skip
    steps = ", ".join(
        _("below %(below)s: %(credit)s") % {"below": _percent(one["below_bps"]), "credit": _percent(one["credit_bps"])}
        for one in rules["curve"]
    )
    return _("%(what)s of at least %(floor)s. An hour below it credits by itself: %(steps)s of its price.") % {
        "what": names[rules["metric"]], "floor": f"{rules['floor_milli'] / 1000:,g}", "steps": steps,
    }  # fmt: skip


def _measured(rules: Mapping[str, Any]) -> str:
    if rules["metric"] == "throughput":
        said = _("The node of the instance, which reads the counter %(counter)s each 15 seconds.")
        return said % {"counter": rules["counter"]}
    return _("The platform's own record of the instance, as for its service level.")


def _revenue(terms: Terms) -> str:
    rules: Any = terms["revenue"]
    overdue = {
        "last_statement": _("the statement before it"), "minimum": _("the minimum"),
        "metered_cost": _("what the hours cost"),
    }  # fmt: skip
    return _(
        "%(share)s of the revenue that you state %(period)s, %(least)s; a statement %(span)s late is "
        "estimated by %(overdue)s."
    ) % {
        "share": _percent(rules["share_bps"]), "period": PERIODS[rules["period"]],
        "least": _least(terms, rules), "span": span(rules["statement_within_s"]),
        "overdue": overdue[rules["if_overdue"]],
    }  # fmt: skip


def _least(terms: Terms, rules: Any) -> str:
    words = {"minimum": shown(rules["minimum_micros"], terms.currency)}
    said = _("at least %(minimum)s") % words
    if rules["true_up"] == METERED_COST:
        said = _("at least %(minimum)s and what the hours rented under it cost by the list") % words
    if rules["cap_micros"] is None:
        return said
    most = _("never more than %(most)s") % {"most": shown(rules["cap_micros"], terms.currency)}
    return f"{said}, {most}"


def _covers(terms: Terms) -> str:
    covers = terms.covers
    if covers is None:
        return ""
    said = (
        _("Instances of up to %(gpus)s at once, on any of the seller's offers.")
        if covers["offers"] is None
        else _("Instances of up to %(gpus)s at once, on these offers: %(offers)s.")
    )
    return said % {
        "gpus": ngettext("%(count)s GPU", "%(count)s GPUs", covers["gpus"]) % {"count": covers["gpus"]},
        "offers": ", ".join(covers["offers"] or ()),
    }
