"""How often each route asks the database. A launch is the hot path; the rest must not grow with what it shows."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from provisioning.models import Instance
from tests.conftest import Fleet, Rent, Run
from tests.marketplace.api.program import Program
from tests.nodes import PlayedNode

# With begin and commit. Each one more costs every customer; see the list that a failure prints.
LAUNCH = 16


def statements(captured: CaptureQueriesContext) -> str:
    return "\n".join(f"{number:3} {query['sql'][:150]}" for number, query in enumerate(captured.captured_queries, 1))


@pytest.fixture
def warm(program: Program) -> Program:
    """Alice's program after its first request: the token's last use is written down, what is kept is kept."""
    program.get("me")
    program.get("instances")
    return program


def test_a_launch_takes_no_more_statements_than_it_needs(warm: Program) -> None:
    assert warm.rent(key="1").status_code == 202
    with CaptureQueriesContext(connection) as captured:
        assert warm.rent(key="2").status_code == 202
    assert len(captured) <= LAUNCH, statements(captured)


def test_a_launch_of_many_replicas_takes_no_more(warm: Program) -> None:
    assert warm.rent(key="1").status_code == 202
    with CaptureQueriesContext(connection) as captured:
        assert warm.rent(key="2", replicas=7).status_code == 202
    assert len(captured) <= LAUNCH, statements(captured)


def test_a_replayed_launch_takes_few(warm: Program) -> None:
    warm.rent(key="1")
    with CaptureQueriesContext(connection) as captured:
        assert warm.rent(key="1").status_code == 202
    assert len(captured) <= 7, statements(captured)


@pytest.mark.parametrize("count", [1, 15])
def test_a_list_of_instances_takes_as_many_however_long_it_is(warm: Program, rent: Rent, run_until_idle: Run,
                                                             count: int) -> None:  # fmt: skip
    for _ in range(count):
        rent()
    run_until_idle()
    with CaptureQueriesContext(connection) as captured:
        assert len(warm.get("instances").json()["data"]) == count
    assert len(captured) <= 6, statements(captured)


@pytest.mark.parametrize(
    ("path", "count"),
    [("instances/{instance}", 6), ("instances/{instance}/events", 3), ("instances/{instance}/logs", 3),
     ("instances/{instance}/telemetry", 4), ("offers", 4),
     ("offers/h200-narvik", 4), ("balance", 6), ("usage", 2), ("me", 3), ("projects", 2), ("quotas", 3),
     ("memberships", 2), ("tokens", 2), ("ssh-keys", 3), ("registries", 3), ("audit", 2)],
)  # fmt: skip
def test_each_look_takes_a_fixed_number(warm: Program, running: Instance, path: str, count: int) -> None:
    with CaptureQueriesContext(connection) as captured:
        assert warm.get(path.format(instance=running.public_id)).status_code == 200
    assert len(captured) <= count, statements(captured)


def work_of(node: PlayedNode) -> list[str]:
    """Let a node report twice and return what the second report did; an empty transaction costs nothing outside."""
    node.sync()
    with CaptureQueriesContext(connection) as captured:
        node.sync()
    return [query["sql"] for query in captured.captured_queries if "SAVEPOINT" not in query["sql"]]


def test_a_node_s_report_takes_few_statements(fleet: Fleet, rent: Rent, run_until_idle: Run) -> None:
    assert len(work_of(fleet.nodes["h200-1"])) <= 3
    for _ in range(3):
        rent()
    run_until_idle()
    assert len(work_of(fleet.nodes["h200-1"])) <= 5
