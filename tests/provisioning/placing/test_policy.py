"""Policies: what each rule allows, that deny wins, and how far light gets."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.placing.policy import (
    SITE_RULES,
    BadPolicy,
    Facts,
    broken_by,
    checked,
    round_trip_ms,
    wants_whole_hosts,
)

NARVIK = Facts(
    country="NO", jurisdiction="GB", latitude=68.4384, longitude=17.4272, power_source="hydro",
    certifications=frozenset({"ISO 27001", "SOC 2"}), supplier="org_operator",
)  # fmt: skip
OSLO = {"latitude": 59.9139, "longitude": 10.7522}


@pytest.mark.parametrize(
    ("document", "broken"),
    [
        ({}, []),
        ({"countries": {"allow": ["NO", "SE"]}}, []),
        ({"countries": {"allow": ["SE"]}}, ["countries"]),
        ({"countries": {"allow": []}}, ["countries"]),
        ({"countries": {"deny": ["NO"]}}, ["countries"]),
        ({"countries": {"allow": ["NO"], "deny": ["NO"]}}, ["countries"]),
        ({"jurisdictions": {"allow": ["NO"]}}, ["jurisdictions"]),
        ({"jurisdictions": {"deny": ["US"]}}, []),
        ({"certifications": ["SOC 2"]}, []),
        ({"certifications": ["SOC 2", "C5"]}, ["certifications"]),
        ({"power_sources": {"allow": ["hydro", "wind"]}}, []),
        ({"power_sources": {"deny": ["hydro"]}}, ["power_sources"]),
        ({"suppliers": {"allow": ["org_operator"]}}, []),
        ({"suppliers": {"allow": ["org_other"]}}, ["suppliers"]),
        ({"near": {**OSLO, "within_ms": 12}}, []),
        ({"near": {**OSLO, "within_ms": 9}}, ["near"]),
        ({"countries": {"deny": ["NO"]}, "suppliers": {"deny": ["org_operator"]}}, ["countries", "suppliers"]),
        ({"no_shared_host": True}, []),
    ],
)
def test_each_rule_keeps_out_what_it_should(document: dict[str, Any], broken: list[str]) -> None:
    assert broken_by([checked(document)], NARVIK) == broken


def test_all_policies_must_allow_and_no_project_can_loosen_its_organization() -> None:
    organization, project = {"countries": {"deny": ["NO"]}}, {"countries": {"allow": ["NO"]}}
    assert broken_by([organization, project], NARVIK) == ["countries"]
    assert not wants_whole_hosts([organization])
    assert wants_whole_hosts([project, {"no_shared_host": True}])


@pytest.mark.parametrize(
    ("document", "field", "problem"),
    [
        ([], "", "object"),
        ({"country": {}}, "country", "unknown"),
        ({"countries": ["NO"]}, "countries", "allow_deny"),
        ({"countries": {"only": ["NO"]}}, "countries/only", "unknown"),
        ({"countries": {"allow": "NO"}}, "countries/allow", "list"),
        ({"countries": {"allow": ["Norway"]}}, "countries/allow", "country"),
        ({"suppliers": {"deny": [""]}}, "suppliers/deny", "text"),
        ({"certifications": [7]}, "certifications", "text"),
        ({"near": {"latitude": 0}}, "near", "near"),
        ({"near": {"latitude": 91, "longitude": 0, "within_ms": 5}}, "near/latitude", "number"),
        ({"near": {"latitude": True, "longitude": 0, "within_ms": 5}}, "near/latitude", "number"),
        ({"no_shared_host": "yes"}, "no_shared_host", "boolean"),
    ],
)
def test_a_document_that_makes_no_sense_is_refused_with_its_field(document: Any, field: str, problem: str) -> None:
    with pytest.raises(BadPolicy) as refused:
        checked(document)
    assert (refused.value.field, refused.value.problem) == (field, problem)


def test_a_document_is_kept_in_its_normal_form() -> None:
    given_ = {"countries": {"allow": ["se", "NO", "no"]}, "certifications": [], "no_shared_host": False, "near": None}
    assert checked(given_) == {"countries": {"allow": ["NO", "SE"]}}
    assert checked({"countries": {"allow": []}}) == {"countries": {"allow": []}}


def test_light_takes_ten_milliseconds_from_oslo_to_narvik_and_back() -> None:
    # 1,004 km by great circle; 2 x 1,004 km x 1.4682 / 299.79 km/ms.
    assert round_trip_ms(facts=NARVIK, **OSLO) == pytest.approx(9.84, abs=0.05)


def test_half_around_the_earth_and_back_is_the_farthest_there_is() -> None:
    antipode = round_trip_ms(latitude=-68.4384, longitude=17.4272 - 180, facts=NARVIK)
    assert antipode == pytest.approx(2 * 20015.09 * 1.4682 / 299.792458, rel=1e-4)
    assert round_trip_ms(latitude=68.4384, longitude=17.4272, facts=NARVIK) == 0


lists = st.fixed_dictionaries(
    {}, optional={name: st.lists(st.sampled_from(["NO", "SE", "GB"])) for name in ("allow", "deny")}
)


@given(
    st.fixed_dictionaries({}, optional={"countries": lists, "jurisdictions": lists}),
    st.fixed_dictionaries({}, optional={"countries": lists, "jurisdictions": lists}),
)
def test_one_more_policy_never_lets_more_in(one: dict[str, Any], other: dict[str, Any]) -> None:
    alone, both = broken_by([checked(one)], NARVIK), broken_by([checked(one), checked(other)], NARVIK)
    assert set(alone) <= set(both) <= set(SITE_RULES)
