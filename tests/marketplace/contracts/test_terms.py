"""Terms: a closed schema, faults with their place, one text, and nobody who judges in their own cause."""

from typing import Any

import pytest

from marketplace.contracts import terms as written
from marketplace.errors import BadOrder
from tests.agreed import GUARANTEE, REVENUE
from tests.outcomes import TERMS, terms

SELLER = "org_" + "a" * 20
OTHER = "org_" + "b" * 20
PARTY = {"name": "Checkers", "organization": None, "public_key": "0" * 64}
DEADLINE = {"within_s": 3600, "late": [{"after_s": 0, "price_bps": 8000}, {"after_s": 600, "price_bps": 0}]}


COVERS = {"offers": None, "gpus": 1}


def judged_by(organization: str | None, key: str = "0" * 64) -> dict[str, Any]:
    return {
        "kind": "third_party", "party": {"name": "x", "organization": organization, "public_key": key},
        "answer_within_s": 60, "on_silence": "fail",
    }  # fmt: skip


def decided_by(organization: str | None) -> dict[str, Any]:
    party = {"name": "x", "organization": organization, "public_key": "0" * 64}
    return {"disputes": {"decided_by": "third_party", "arbiter": party}}


@pytest.mark.parametrize(
    ("differs", "place"),
    [
        ({"price": 1}, "price"),
        ({"unit": {"price_micros": 1.5}}, "unit/price_micros"),
        ({"unit": {"price_micros": True}}, "unit/price_micros"),
        ({"unit": {"price_micros": 0}}, "unit/price_micros"),
        ({"unit": {"per": 7}}, "unit/per"),
        (
            {
                "kind": "per_unit",
                "measured": {"kind": "claim"},
                "unit": {"name": "tokens", "per": 1_000_000, "price_micros": 1, "most": 499_999},
            },
            "unit/price_micros",
        ),
        ({"unit": {"most": 2}}, "unit"),
        ({"unit": {"colour": "red"}}, "unit/colour"),
        ({"counts": "  "}, "counts"),
        ({"currency": "usd"}, "currency"),
        ({"kind": "per_hour"}, "kind"),
        ({"kind": "per_unit"}, "measured"),
        ({"kind": "per_unit", "measured": {"kind": "counter", "name": "tokens_total"}}, "measured/most_per_s"),
        (
            {"kind": "per_unit", "measured": {"kind": "counter", "name": "tokens_total", "most_per_s": 0}},
            "measured/most_per_s",
        ),
        ({"kind": "guarantee"}, "guarantee"),
        ({"kind": "revenue_share"}, "revenue"),
        ({"verifier": {"kind": "oracle"}}, "verifier/kind"),
        ({"verifier": {"kind": "command", "timeout_s": 60, "runs": 1, "on_silence": "pass"}}, "verifier/gpus"),
        ({"verifier": {"kind": "outputs", "timeout_s": 60}}, "verifier/timeout_s"),
        (
            {"verifier": {"kind": "rerun", "timeout_s": 1, "runs": 9, "on_silence": "pass", "rate_bps": 1}},
            "verifier/runs",
        ),
        ({"evidence": ["exit_code", "hearsay"]}, "evidence/1"),
        ({"acceptance": {"on_silence": "wait"}}, "acceptance/on_silence"),
        ({"acceptance": {"window_s": 60 * 86_400}}, "disputes"),
        ({"disputes": {"arbiter": PARTY}}, "disputes/arbiter"),
        ({"disputes": {"decided_by": "third_party"}}, "disputes/arbiter"),
        (
            {"deadline": {"within_s": 60, "late": [*DEADLINE["late"], {"after_s": 600, "price_bps": 1}]}},
            "deadline/late/2",
        ),
        ({"cap": {"period": "day", "micros": 5}, "floor": {"period": "day", "micros": 6}}, "floor/micros"),
        ({"cap": {"period": "day", "micros": 5}, "floor": {"period": "month", "micros": 5}}, "floor/period"),
        ({"clawback_s": -1}, "clawback_s"),
        ({"schema": "gpumarket.terms/1"}, "schema"),
        ({"work": {"gpus": 0}}, "work/gpus"),
        ({"work": {"seconds": 31 * 86_400}}, "work/seconds"),
        ({"work": {"offers": []}}, "work/offers"),
        ({"work": {"attempts": 3}, "retries": 3}, "work/attempts"),
        ({"work": {"attempt_micros": 2, "unpaid_micros": 1}}, "work/unpaid_micros"),
        ({"work": {"unpaid_micros": 10**10 + 1}}, "work/unpaid_micros"),
        ({"kind": "revenue_share", "revenue": REVENUE, "work": TERMS["work"]}, "work"),
        (
            {"kind": "per_unit", "measured": {"kind": "output", "path": "units"}, "work": None},
            "work",
        ),
        ({"kind": "revenue_share", "revenue": REVENUE | {"true_up": "metered_cost"}}, "revenue/true_up"),
        ({"kind": "revenue_share", "revenue": REVENUE | {"if_overdue": "metered_cost"}}, "revenue/if_overdue"),
        (
            {"kind": "revenue_share", "revenue": REVENUE | {"covers": COVERS | {"offers": []}}},
            "revenue/covers/offers",
        ),
        (
            {"kind": "revenue_share", "revenue": REVENUE | {"covers": COVERS | {"gpus": 0}}},
            "revenue/covers/gpus",
        ),
        ({"kind": "revenue_share", "revenue": REVENUE | {"cap_micros": 1}}, "revenue/minimum_micros"),
        ({"kind": "guarantee", "guarantee": GUARANTEE | {"counter": "c" * 101}}, "guarantee/counter"),
        ({"shares": [{"to": "seller", "bps": 8000}, {"to": "platform", "bps": 1999}]}, "shares"),
        ({"shares": [{"to": "seller", "bps": 5000}, {"to": "seller", "bps": 5000}]}, "shares/1/to"),
        ({"shares": [{"to": "my friend", "bps": 10_000}]}, "shares/0/to"),
        ({"shares": []}, "shares"),
        # Whoever earns does not judge: neither the seller, nor somebody with a share, nor one who judged before.
        ({"verifier": judged_by(SELLER)}, "verifier/party/organization"),
        ({"verifier": judged_by(OTHER), "shares": [{"to": OTHER, "bps": 10_000}]}, "verifier/party/organization"),
        (decided_by(SELLER), "disputes/arbiter/organization"),
        ({"verifier": judged_by(None), **decided_by(None)}, "disputes/arbiter/public_key"),
    ],
)
def test_what_is_wrong_in_terms_is_said_with_its_place(differs: dict[str, Any], place: str) -> None:
    with pytest.raises(BadOrder) as refused:
        written.checked(terms(**differs), seller=SELLER)
    assert refused.value.field == place


def test_a_term_that_is_missing_or_no_object_at_all_is_said_with_its_place() -> None:
    with pytest.raises(BadOrder) as refused:
        written.checked({name: value for name, value in TERMS.items() if name != "retries"}, seller=SELLER)
    assert refused.value.field == "retries"
    for nothing in (None, [], "terms", 5):
        with pytest.raises(BadOrder):
            written.checked(nothing, seller=SELLER)


def test_each_kind_has_terms_that_are_good() -> None:
    unit = {"name": "tokens", "per": 1_000_000, "price_micros": 250_000, "most": 4_000_000}
    guarantee = {
        "metric": "throughput", "counter": "tokens_total", "floor_milli": 1000, "cap_bps": 5000, "seller_bps": 10_000,
        "curve": [{"below_bps": 9500, "credit_bps": 1000}, {"below_bps": 8000, "credit_bps": 5000}],
    }  # fmt: skip
    revenue = {
        "share_bps": 500, "period": "month", "minimum_micros": 0, "cap_micros": None, "true_up": "none",
        "statement_within_s": 86_400, "if_overdue": "minimum", "covers": None,
    }  # fmt: skip
    covering = {"true_up": "metered_cost", "if_overdue": "metered_cost", "covers": {"offers": None, "gpus": 8}}
    for differs in (
        {},
        {"verifier": judged_by(OTHER), "deadline": DEADLINE},
        {"kind": "per_unit", "unit": unit, "measured": {"kind": "output", "path": "units.json"}},
        {"kind": "guarantee", "guarantee": guarantee},
        {"kind": "revenue_share", "revenue": revenue},
        {"kind": "revenue_share", "revenue": revenue | covering},
    ):
        assert written.checked(terms(**differs), seller=SELLER).text


def test_the_text_is_canonical_and_its_digest_names_these_terms_alone() -> None:
    one = written.checked(terms(counts="Fertig heißt: 完成"), seller=SELLER)
    other = written.checked(dict(reversed(terms(counts="Fertig heißt: 完成").items())), seller=SELLER)
    assert one.text.startswith('{"acceptance":{"on_silence":"accept","window_s":3600},"cap":null')
    assert "完成" in one.text
    assert (one.text, one.sha256) == (other.text, other.sha256)
    assert one.sha256 != written.checked(terms(counts="Fertig heißt: 完成."), seller=SELLER).sha256


def test_the_price_falls_after_the_deadline_and_is_rounded_once() -> None:
    sold = written.of(terms(deadline=DEADLINE))
    assert [sold.price_bps(late) for late in (-5, 0, 1, 600, 601)] == [10_000, 10_000, 8000, 8000, 0]
    unit = {"name": "tokens", "per": 1000, "price_micros": 333, "most": 5000}
    priced = written.of(terms(kind="per_unit", unit=unit))
    assert [priced.amount_micros(units=units) for units in (1, 2, 1500, 5000, 9999)] == [0, 1, 500, 1665, 1665]
    assert priced.most_micros == 1665
