"""A home belongs to one `up` at a time, and nothing that is no home is touched."""

import os
import signal
import subprocess
import sys
import time

import pytest

from marketplace.embedded import home as homes
from marketplace.embedded.home import end_workloads, held, start_over
from marketplace.embedded.programs import CannotStart
from tests.marketplace.embedded.conftest import wait_until

HOLD = """
import sys, time
from pathlib import Path
from marketplace.embedded.home import held, say_ending
with held(Path(sys.argv[1])):
    if sys.argv[2] == "ending":
        say_ending(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def hold(home, *, seconds: float, how: str = "up") -> subprocess.Popen[bytes]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(home), how, str(seconds)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    return holder


def test_a_second_up_in_the_same_home_is_told_who_holds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(homes, "WAIT_FOR_HOLDER_S", 0.1)
    with hold(tmp_path / "home", seconds=60) as holder:
        with pytest.raises(CannotStart, match=f"process {holder.pid} is already up there"), held(tmp_path / "home"):
            pass
        holder.kill()


def test_a_home_is_free_after_kill_9(tmp_path, monkeypatch):
    monkeypatch.setattr(homes, "WAIT_FOR_HOLDER_S", 0)
    with hold(tmp_path / "home", seconds=60) as holder:
        holder.send_signal(signal.SIGKILL)
    with held(tmp_path / "home"):
        assert (tmp_path / "home" / homes.LOCK).read_text() == str(os.getpid())


def test_one_who_is_about_to_leave_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(homes, "WAIT_FOR_HOLDER_S", 0)
    with hold(tmp_path / "home", seconds=0.5, how="ending"), held(tmp_path / "home"):
        assert (tmp_path / "home" / homes.LOCK).read_text() == str(os.getpid())


def test_a_folder_with_other_things_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CannotStart, match="nothing in it was touched"), held(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_home(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match="is not a folder"), held(tmp_path / "file"):
        pass


def test_starting_over_deletes_what_we_made_and_nothing_else(tmp_path):
    with held(tmp_path / "home"):
        for name in ("postgres", "redis", "logs", "nodes"):
            (tmp_path / "home" / name / "deep").mkdir(parents=True)
        (tmp_path / "home" / "connection.json").touch()
        (tmp_path / "home" / "notes.txt").touch()
        start_over(tmp_path / "home")
        assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["notes.txt", homes.LOCK]


def test_workloads_whose_agent_is_gone_are_ended_and_those_of_another_home_are_not(tmp_path):
    """A shim is known by its command line, which names a folder below the home."""
    sleep = [sys.executable, "-c", "import time; time.sleep(60)", "provisioning.agent.shim"]
    with (
        subprocess.Popen([*sleep, str(tmp_path / "home" / "nodes" / "n1" / "workloads" / "asg_1")]) as ours,
        subprocess.Popen([*sleep, str(tmp_path / "home2" / "nodes" / "n1" / "workloads" / "asg_1")]) as theirs,
    ):
        wait_until(lambda: os.path.exists(f"/proc/{theirs.pid}") or theirs.poll() is None)
        time.sleep(0.1)
        end_workloads(tmp_path / "home")
        assert ours.wait(timeout=20) == -signal.SIGKILL
        assert theirs.poll() is None
        theirs.kill()
