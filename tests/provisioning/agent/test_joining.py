"""Becoming a node, with real agents against a control plane that keeps the protocol."""

import hashlib

import pytest

from tests.provisioning.agent.cast import AgentRun, eventually
from tests.provisioning.agent.control_plane import TOKEN

NO_TOKEN = {"GPUMARKET_JOIN_TOKEN": ""}


def test_a_node_joins_once_and_later_starts_need_no_token(plane, home, start_agent):
    agent = start_agent()
    eventually(lambda: plane.reports)
    agent.stop()
    start_agent("--join-token-file", "/no/such/file", env=NO_TOKEN)
    eventually(lambda: plane.last["agent_epoch"] == 2)
    assert len(plane.joins) == 1
    join = plane.joins[0]
    assert join["key_sha256"] == hashlib.sha256((home / "key").read_bytes()).hexdigest()
    assert len(bytes.fromhex((home / "key").read_text())) == 32
    assert (home / "key").stat().st_mode & 0o777 == 0o600
    assert (join["runtime"], join["inventory"]["source"]) == ("process", "simulated")
    assert [gpu["memory_mib"] for gpu in join["inventory"]["gpus"]] == [144384] * 4


def test_a_lost_join_answer_is_asked_for_again_with_the_same_key(plane, start_agent):
    plane.lose_answers["/agent/v1/join"] = 2
    start_agent()
    eventually(lambda: plane.reports)
    assert len(plane.joins) == 3
    assert len({join["key_sha256"] for join in plane.joins}) == 1


def test_a_join_survives_an_agent_killed_before_it_heard_the_answer(plane, start_agent):
    plane.forced = lambda path: (500, {}, b"") if plane.joins else None
    agent = start_agent()
    eventually(lambda: plane.joins)
    agent.kill()
    plane.forced = lambda path: None
    start_agent()
    eventually(lambda: plane.reports)
    assert len({join["key_sha256"] for join in plane.joins}) == 1


def test_a_token_from_a_file_joins(plane, tmp_path, start_agent):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    start_agent("--join-token-file", str(tmp_path / "token"), env=NO_TOKEN)
    eventually(lambda: plane.reports)


@pytest.mark.parametrize(
    ("token", "known_key", "said"),
    [("jt_wrong", None, "unknown or expired token"), (TOKEN, "other", "this token was used with another key")],
)
def test_a_refused_join_is_said_plainly_and_not_repeated(plane, start_agent, token, known_key, said):
    plane.key_sha256 = known_key
    agent = start_agent("--join-token", token)
    assert agent.exit_code() == 1
    assert said in agent.log
    assert len(plane.joins) == 1


@pytest.mark.parametrize(
    ("options", "env", "said"),
    [
        ([], NO_TOKEN, "give it a join token"),
        (["--join-token-file", "/no/such/file"], {}, "cannot read the join token in /no/such/file"),
        (["--gpus", "simulated:H200"], {}, "neither nvml nor simulated:MODEL:COUNT:MEMORY_MIB"),
        (["--gpus", "nvml"], {"LD_LIBRARY_PATH": "/nowhere"}, "no NVIDIA driver answers"),
    ],
)
def test_wrong_use_ends_at_once_with_a_reason(start_agent, options, env, said):
    agent = start_agent(*options, env=env)
    assert agent.exit_code() == 2
    assert said in agent.log
    assert "Traceback" not in agent.log


def test_a_home_belongs_to_one_agent_at_a_time(plane, start_agent):
    first = start_agent()
    eventually(lambda: plane.reports)
    second = start_agent()
    assert second.exit_code() == 2
    assert f"another agent (pid {first.process.pid}) already uses" in second.log


def test_a_home_may_be_used_again_as_soon_as_its_agent_was_killed(plane, start_agent):
    for epoch in (1, 2, 3):
        agent = start_agent()
        eventually(lambda epoch=epoch: plane.last.get("agent_epoch") == epoch)
        agent.kill()


def test_a_damaged_state_file_is_refused_loudly(home, start_agent):
    home.mkdir()
    (home / "state.json").write_text('{"agent_epoch": 3')
    agent = start_agent()
    assert agent.exit_code() == 2
    assert "state.json is damaged" in agent.log


def test_the_first_lines_say_that_the_runtime_does_not_isolate(plane, start_agent):
    agent = start_agent("--log-format", "json")
    eventually(lambda: plane.reports)
    assert '"the process runtime runs commands as this user and does not isolate tenants' in agent.log
    assert all(line.startswith('{"time": ') for line in agent.log.splitlines())


def test_simulated_gpus_keep_their_names_in_one_home_and_differ_between_homes(plane, tmp_path, start_agent):
    start_agent().kill()
    start_agent()
    eventually(lambda: plane.reports)
    names = [gpu["uuid"] for gpu in plane.inventory()["gpus"]]
    assert len(set(names)) == 4
    assert names == [gpu["uuid"] for gpu in plane.joins[0]["inventory"]["gpus"]]
    joins = len(plane.joins)
    other = AgentRun(tmp_path / "other", plane.url)
    try:
        eventually(lambda: len(plane.joins) > joins)
    finally:
        other.kill()
    assert set(names).isdisjoint(gpu["uuid"] for gpu in plane.joins[-1]["inventory"]["gpus"])
