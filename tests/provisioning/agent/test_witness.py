"""What the agent signs of each run: once, what it saw, with a key that stays in its home."""

import stat
import time

import pytest

from provisioning.agent.clock import boottime
from provisioning.agent.protocol import parse_document
from provisioning.agent.readings import READINGS, Readings, note
from provisioning.agent.signing import digest, is_signed_by, public_of
from provisioning.agent.witness import Seen, Witness
from tests.provisioning.agent.cast import eventually
from tests.provisioning.agent.control_plane import NODE, make_assignment


@pytest.fixture
def stating(node):
    """The node, with a witness, and what it stated so far."""

    def begin():
        node.runtime._witness = Witness(private=node.home.signing_key(), node=lambda: NODE, journal=node.journal)

    begin()
    node.begin_to_state = begin
    node.stated = lambda: [one["body"] for one in node.journal.waiting(100) if one["kind"] == "statement"]
    return node


def test_how_a_run_ended_is_stated_once_and_signed(stating):
    stating.run("asg_a", "exit 3", gpus=stating.gpus[:2])
    seen = stating.until("asg_a", "exited")
    stating.stays("asg_a", "exited")
    (document,) = stating.stated()
    assert is_signed_by(document, public_of(stating.home.signing_key()))
    body = document["body"]
    assert (body["node"], body["assignment"], body["fence"]) == (NODE, "asg_a", 1)
    assert (body["state"], body["exit_code"], body["gpus"]) == ("exited", 3, list(stating.gpus[:2]))
    assert body["command_sha256"] == digest(["sh", "-c", "exit 3"])
    assert body["running_at"] is None or body["running_at"] <= body["ended_at"]
    assert seen.exit_code == 3
    document["body"]["exit_code"] = 0
    assert not is_signed_by(document, public_of(stating.home.signing_key()))


def test_what_ended_while_it_was_noted_as_running_ran_no_longer_than_until_then(stating, tmp_path):
    wanted = make_assignment("asg_a")
    wanted = parse_document(generation=1, desired={"assignments": [wanted]}).assignments[0]
    ended_at = boottime()
    time.sleep(0.02)
    stating.runtime._witness.see(wanted, Seen("running", None, None, "", None), folder=tmp_path)
    stating.runtime._witness.see(wanted, Seen("exited", 0, ended_at, "", None), folder=tmp_path)
    (document,) = stating.stated()
    assert document["body"]["running_at"] == document["body"]["ended_at"]


def test_the_first_and_last_readings_of_its_counters_are_signed_with_it(stating):
    stating.run("asg_a", "sleep 600")
    stating.until("asg_a", "running")
    (workload,) = stating.runtime._workloads.values()
    folder = workload.metadata.parent
    note(folder / READINGS, {"tokens_total": 3})
    note(folder / READINGS, {"tokens_total": 90})
    stating.want("asg_a", "gone")
    stating.until("asg_a", "gone")
    assert stating.stated()[-1]["body"]["counters"] == {"tokens_total": [3, 90]}


def test_what_it_counted_after_the_last_reading_is_told_and_signed_before_how_it_ended(stating):
    stating.runtime._readings = Readings(record=stating.journal.append)
    counters = {"port": 9, "path": "/metrics", "names": ["tokens_total"]}
    stating.run("asg_a", 'echo "tokens_total 90" > "$GPUMARKET_COUNTERS"', work={"counters": counters})
    stating.until("asg_a", "exited")
    sample = {"assignment": "asg_a", "fence": 1, "values": {"tokens_total": 90}}
    told = [one for one in stating.journal.waiting(100) if one["kind"] in {"counters", "statement"}]
    assert [one["kind"] for one in told] == ["counters", "statement"]
    assert told[0]["body"] == {"samples": [sample]}
    assert told[1]["body"]["body"]["counters"] == {"tokens_total": [90, 90]}


def test_what_is_told_to_end_is_read_for_the_last_time_before_its_folder_goes(stating):
    stating.runtime._readings = Readings(record=stating.journal.append)
    counters = {"port": 9, "path": "/metrics", "names": ["tokens_total"]}
    leave = 'trap \'echo "tokens_total 7" > "$GPUMARKET_COUNTERS"; exit 0\' TERM; while :; do sleep 0.05; done'
    stating.run("asg_a", leave, work={"counters": counters})
    stating.until("asg_a", "running")
    stating.want("asg_a", "gone")
    stating.until("asg_a", "gone")
    assert stating.stated()[-1]["body"]["counters"] == {"tokens_total": [7, 7]}


def test_an_agent_that_starts_again_says_the_same_words(stating):
    stating.run("asg_a", "exit 0")
    stating.until("asg_a", "exited")
    (first,) = stating.stated()
    stating.wake_up()
    stating.begin_to_state()
    stating.until("asg_a", "exited")
    assert stating.stated() == [first, first]


def test_what_is_told_to_go_is_stated_before_nothing_is_left(stating):
    stating.run("asg_a", "sleep 600")
    stating.until("asg_a", "running")
    stating.want("asg_a", "gone")
    stating.until("asg_a", "gone")
    (document,) = stating.stated()
    assert document["body"]["exit_code"] == 143
    assert document["body"]["running_at"] is not None
    assert not stating.runtime._witness._told


def test_the_private_key_is_for_the_agent_alone_and_stays_the_same(stating):
    path = stating.home.path / "signing-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stating.home.signing_key() == stating.home.signing_key() == path.read_text()


def test_a_real_agent_tells_its_public_key_alone_and_sends_what_it_signed(plane, start_agent, home):
    start_agent()
    plane.want("asg_a", "running", command=["sh", "-c", "exit 5"])
    (said,) = eventually(lambda: [one for one in plane.events if one["kind"] == "statement"])
    private = (home / "signing-key").read_text()
    assert plane.joins[0]["inventory"]["signing_key"] == public_of(private)
    assert is_signed_by(said["body"], public_of(private))
    assert (said["body"]["body"]["node"], said["body"]["body"]["exit_code"]) == (NODE, 5)
    assert private not in str(plane.joins) + str(plane.reports)
