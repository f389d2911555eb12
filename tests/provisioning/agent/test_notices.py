"""A notice reaches the command as a file, and the node holds to its deadline by its own clock."""

import json
import time

import pytest

from provisioning.agent.clock import boottime
from tests.provisioning.agent.cast import eventually

# It says when it gets SIGTERM, and stays.
STUBBORN = "trap 'echo term' TERM; echo ready; while :; do sleep 0.02; done"


def notice(left_ms=60_000, grace_ms=1000, **changes):
    return {
        "id": "int_abc",
        "reason": "outbid",
        "notice_at": "2026-11-26T12:00:00+00:00",
        "deadline_at": "2026-11-26T12:01:00+00:00",
        "min_notice_s": 60,
        "left_ms": left_ms,
        "grace_ms": grace_ms,
    } | changes


def metadata(node, name="asg_a"):
    return node.home.workloads / name / "metadata" / "interruption.json"


def test_the_command_finds_its_notice_where_its_environment_says_and_none_while_there_is_none(node):
    node.run("asg_a", "while ! test -s $GPUMARKET_METADATA/interruption.json; do sleep 0.02; done; "
                      "cat $GPUMARKET_METADATA/interruption.json; sleep 600")  # fmt: skip
    node.until("asg_a", "running")
    assert not metadata(node).exists()
    node.want("asg_a", "running", notice=notice())
    eventually(lambda: node.look("asg_a") and node.output("asg_a").endswith("}"))
    seen = json.loads(node.output("asg_a"))
    assert (seen["id"], seen["reason"], seen["deadline_at"]) == ("int_abc", "outbid", "2026-11-26T12:01:00+00:00")
    node.want("asg_a", "running", notice=None)
    node.look("asg_a")
    assert not metadata(node).exists()


def test_the_command_finds_its_risk_until_that_is_over_or_a_notice_says_more(node):
    risk = {"id": "int_abc", "level": "elevated", "advised_at": "2026-11-26T12:00:00+00:00"}
    file = metadata(node).with_name("risk.json")
    node.run("asg_a", "sleep 600")
    node.until("asg_a", "running")
    for told, there in (
        ({"risk": risk}, True),
        ({"notice": notice()}, False),
        ({"notice": None}, True),
        ({"risk": None}, False),
    ):
        node.want("asg_a", "running", **told)
        node.look("asg_a")
        assert file.exists() == there, told
        assert not there or json.loads(file.read_text()) == risk


def test_sigterm_comes_one_grace_before_the_deadline_and_sigkill_at_it_and_neither_earlier(node):
    node.run("asg_a", STUBBORN)
    eventually(lambda: node.output("asg_a") == "ready\n")
    began = boottime()
    node.want("asg_a", "running", notice=notice(left_ms=2500, grace_ms=1500), stop_grace_s=10)
    eventually(lambda: node.look("asg_a") and "term" in node.output("asg_a"))
    assert boottime() - began >= 1.0
    seen = node.until("asg_a", "exited")
    assert 2.4 <= seen.exited_at - began < 10
    assert "interrupted as announced (int_abc)" in seen.message
    assert seen.exit_code == 137


def test_a_notice_that_is_told_again_keeps_its_deadline_and_one_that_is_called_off_has_none(node):
    node.run("asg_a", STUBBORN)
    node.until("asg_a", "running")
    node.want("asg_a", "running", notice=notice(left_ms=1500, grace_ms=100))
    first = node.home.document().find("asg_a").notice.until
    node.want("asg_a", "running", notice=notice(left_ms=60_000, grace_ms=100))
    assert node.home.document().find("asg_a").notice.until == pytest.approx(first)
    node.want("asg_a", "running", notice=None)
    time.sleep(1.6)
    for _ in range(5):
        node.look("asg_a")
    assert node.until("asg_a", "running").state == "running"


def test_an_agent_that_was_killed_meanwhile_still_holds_to_the_deadline(node):
    node.run("asg_a", STUBBORN)
    node.until("asg_a", "running")
    began = boottime()
    node.want("asg_a", "running", notice=notice(left_ms=1500, grace_ms=500))
    node.wake_up()
    seen = node.until("asg_a", "exited")
    assert 1.4 <= seen.exited_at - began < 4
