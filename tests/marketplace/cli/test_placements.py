"""`gpumarket why` and `gpumarket policy`, and what `launch` asks of placement."""

import json

import pytest

from marketplace.cli import orders, placements
from marketplace.cli.problems import Problem
from tests.marketplace.cli.shop import make_problem
from tests.marketplace.cli.test_help import REFERENCE

REFUSED = {
    "id": "plc_1", "outcome": "refused", "times": 3, "run": 2, "at": "2026-11-23T12:00:00Z", "candidates": 1,
    "request": {"replicas": 4, "gpus": 8, "level": "rack", "required": True}, "nodes": 0, "level": None,
    "rejected": [{"rule": "full", "nodes": 7, "reason": "full"}], "most": {"rack": 1, "fabric": 4},
    "advice": "It would fit now if it may use one fabric.",
}  # fmt: skip


def test_a_refusal_is_told_line_by_line():
    lines = placements.describe(REFUSED)
    assert lines[0] == "plc_1  refused 3 times"
    assert "  asked     4 x 8 GPUs (level rack, required True)" in lines
    assert "  not       7 nodes: full" in lines
    assert "  room      replicas in one domain at most: rack 1, fabric 4" in lines
    assert lines[-1] == "  advice    It would fit now if it may use one fabric."


@pytest.mark.parametrize(
    ("given", "wish"),
    [
        ({"within": None, "spread": None}, None),
        ({"within": "rack", "spread": None}, {"level": "rack", "required": True}),
        ({"within": None, "spread": "node"}, {"strategy": "spread", "level": "node", "required": True, "max_skew": 1}),
        (
            {"within": None, "spread": "rack:2"},
            {"strategy": "spread", "level": "rack", "required": True, "max_skew": 2},
        ),
    ],
)
def test_within_and_spread_become_a_wish(given, wish):
    assert orders.wish(**given) == wish


@pytest.mark.parametrize("given", [{"within": "rack", "spread": "node"}, {"within": None, "spread": "rack:0"}])
def test_a_wish_that_makes_no_sense_is_a_usage_error(given):
    with pytest.raises(Problem):
        orders.wish(**given)


def test_a_policy_is_read_from_a_file_or_told_what_is_wrong_with_it(tmp_path):
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"no_shared_host": True}))
    assert placements.read_document(file) == {"no_shared_host": True}
    file.write_text("{")
    with pytest.raises(Problem) as refused:
        placements.read_document(file)
    assert refused.value.suggestion() == f"Such as: {placements.EXAMPLE}"
    with pytest.raises(Problem) as refused:
        placements.read_document(tmp_path / "nosuch.json")
    assert refused.value.reasons() == ["No such file or directory"]


def test_a_policy_that_was_changed_meanwhile_is_told_at_once_with_where_to_look(gpumarket, shop, tmp_path, monkeypatch):
    def stale(method, words, *rest):
        return (
            make_problem(409, "stale_version", retry="new_request") if method == "PUT" else whole(method, words, *rest)
        )

    whole = shop.answer
    monkeypatch.setattr(shop, "answer", stale)
    file = tmp_path / "policy.json"
    file.write_text("{}")
    said = gpumarket("policy", "set", str(file), "--project", "prj_1", "--version", "1")
    assert said.code == 5
    assert "gpumarket policy show" in said.err
    assert len([one for one in shop.requests if one["method"] == "PUT"]) == 1


def test_one_node_is_no_nodes():
    lines = placements.describe(REFUSED | {"request": {"replicas": 1, "gpus": 1}})
    assert "  asked     1 x 1 GPU" in lines
    assert "  looked at 1 node that could take a replica" in lines


@pytest.mark.parametrize("command", ["gpumarket why", "gpumarket policy show", "gpumarket policy set"])
def test_every_command_stands_in_the_reference(command):
    assert command in REFERENCE.read_text()
