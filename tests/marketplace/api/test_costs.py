"""Costs through the API: what tells them apart, which days, and what is refused."""

import pytest

from billing.models import PriceVersion
from marketplace.models import Organization, Project
from tests.marketplace.api.program import Program, problem_of
from tests.marketplace.test_breakdown import DAY, NOON, price, used

__all__ = ["price"]


def test_costs_are_told_apart_by_what_was_asked(program: Program, acme: Organization, price: PriceVersion,
                                                 project: Project) -> None:  # fmt: skip
    used(acme, price, name="ins_1", start=NOON - DAY, end=NOON, project=project.public_id, market="on_demand")
    found = program.get("costs?by=project,day&month=2026-03").json()
    assert found["by"] == ["day", "project"]
    whole = {"id": project.public_id, "name": "default"}
    assert found["data"] == [
        {"day": "2026-03-09", "project": whole, "amount": "89.640036"},
        {"day": "2026-03-10", "project": whole, "amount": "89.640036"},
    ]
    assert found["total"] == "179.280072"
    assert program.get("costs?since=2026-03-10&until=2026-03-11").json()["total"] == "89.640036"
    assert program.get("costs?month=2026-03&market=spot").json()["data"] == []
    lines = b"".join(program.get("costs.csv?by=project&month=2026-03").streaming_content).decode().splitlines()
    assert lines == ["project,project_name,amount,currency", f"{project.public_id},default,179.280072,USD"]


@pytest.mark.parametrize(
    "query",
    ["by=colour", "month=2026-13", "month=november", "since=2026-03-10&until=2026-03-10",
     "month=2026-03&since=2026-03-01", "since=2020-01-01&until=2026-01-01", "market=black", "colour=red"],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(program: Program, query: str) -> None:
    problem_of(program.get(f"costs?{query}"), 422, "invalid_request")
