"""The supervisor brings programs back, ends all they started, and leaves strangers alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from marketplace.embedded import supervisor as supervising
from marketplace.embedded.programs import MARK, CannotStart, is_alive, start
from marketplace.embedded.supervisor import Supervisor, ToldToStop, end_leftovers
from tests.marketplace.embedded.conftest import SLEEP, make_program, wait_until

FAMILY = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", {SLEEP!r}])
open("child", "w").write(str(child.pid) + "\\n")
time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('deaf', 'w'); time.sleep(60)"


def recorded_pid(home: Path, name: str = "sleeper") -> int:
    return json.loads((home / "run" / f"{name}.json").read_text())["pid"]


def child_pid(folder: Path) -> int:
    wait_until(lambda: (folder / "child").exists() and (folder / "child").read_text().endswith("\n"))
    return int((folder / "child").read_text())


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and is_alive(psutil.Process(pid))


def look_until(supervisor: Supervisor, condition) -> None:
    def looked():
        supervisor.look()
        return condition()

    wait_until(looked)


def test_a_program_that_is_killed_runs_again_at_once(supervisor, folder, said):
    supervisor.start(make_program(folder), stage=0)
    first = recorded_pid(folder)
    os.kill(first, signal.SIGKILL)
    look_until(supervisor, lambda: recorded_pid(folder) != first)
    assert is_running(recorded_pid(folder))
    assert said == ["sleeper was killed (SIGKILL) and is started again now."]


def test_a_crash_loop_is_slowed_down_and_shown_with_its_last_words(supervisor, folder, said, monkeypatch):
    monkeypatch.setattr(supervising, "FIRST_PAUSE_S", 0.02)
    supervisor.start(make_program(folder, "raise SystemExit('no such table')"), stage=0)
    look_until(supervisor, lambda: len(said) == 4)
    assert "started again now" in said[0]
    assert "started again in 0.02 s" in said[1]
    assert "started again in 0.04 s; it has died 3 times in a row" in said[2]
    assert "no such table" in said[2]
    assert "in 0.08 s" in said[3]


def test_a_log_that_grew_long_makes_room_at_the_next_start(supervisor, folder, monkeypatch):
    monkeypatch.setattr(supervising, "LOG_MAX_BYTES", 10)
    for text in ("short", "quite long a text"):
        supervisor.log("sleeper").write_text(text)
        supervisor.start(make_program(folder), stage=0)
        supervisor.end_all(within_s=5)
        assert supervisor.log("sleeper").read_text() == ("short" if text == "short" else "")
    assert (folder / "logs" / "sleeper.log.1").read_text() == "quite long a text"


def test_what_a_killed_program_left_is_ended_before_it_runs_again(supervisor, folder):
    supervisor.start(make_program(folder, FAMILY), stage=0)
    orphan = child_pid(folder)
    os.kill(recorded_pid(folder), signal.SIGKILL)
    look_until(supervisor, lambda: not is_running(orphan))


def test_a_death_while_others_start_is_told_and_not_waited_for(supervisor, folder):
    supervisor.start(make_program(folder, "raise SystemExit('bad settings')"), stage=0)
    with pytest.raises(CannotStart, match=r"(?s)sleeper ended by itself \(code 1\).*bad settings"):
        supervisor.wait_for("another", until=lambda: False, within_s=10)


def test_what_ends_well_between_two_looks_is_waited_for_and_not_called_dead(supervisor, folder):
    last = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)"
    supervisor.start(make_program(folder, last), stage=1)
    looks = []

    def has_ended():
        looks.append(1)
        if len(looks) == 1:  # It ends right after it was seen to run.
            (folder / "go").touch()
            wait_until(lambda: not is_running(recorded_pid(folder)))
            return False
        return True

    supervisor.wait_for("sleeper", until=has_ended, within_s=30)
    assert len(looks) == 2


def test_waiting_ends_when_somebody_wants_to_stop(supervisor, folder):
    supervisor.stop()
    with pytest.raises(ToldToStop):
        supervisor.wait_for("anything", until=lambda: False, within_s=10)
    supervisor.watch(until=lambda: False)


@pytest.mark.parametrize("session", ["", ", start_new_session=True"])
def test_ending_takes_everything_that_was_started_along(supervisor, folder, session):
    supervisor.start(make_program(folder, FAMILY.replace("])", f"]{session})")), stage=0)
    pids = [recorded_pid(folder), child_pid(folder)]
    supervisor.end_all(within_s=5)
    assert not any(is_running(pid) for pid in pids)
    assert list((folder / "run").iterdir()) == []


def test_who_does_not_end_when_asked_is_killed(supervisor, folder):
    supervisor.start(make_program(folder, STUBBORN), stage=0)
    pid = recorded_pid(folder)
    wait_until((folder / "deaf").exists)
    supervisor.end_all(within_s=0.3)
    assert not is_running(pid)


def test_higher_stages_end_while_lower_ones_still_serve(supervisor, folder):
    farewell = """
import os, signal, sys, time
def leave(*_):
    open("server-was-there", "w").write(str(os.path.exists(f"/proc/{server}") and server)); sys.exit()
server = int(sys.argv[1])
signal.signal(signal.SIGTERM, leave)
open("listening", "w")
time.sleep(60)
"""
    supervisor.start(make_program(folder, name="server"), stage=0)
    server = recorded_pid(folder, "server")
    client = make_program(folder, name="client")
    client = make_program(folder, name="client", argv=(*client.argv[:-1], farewell, str(server)))
    supervisor.start(client, stage=2)
    wait_until((folder / "listening").exists)
    supervisor.end_all(within_s=9)
    assert (folder / "server-was-there").read_text() == str(server)


def test_what_a_killed_run_left_is_ended_by_the_next(folder):
    run = f"""
import os, signal, time
from pathlib import Path
from marketplace.embedded.supervisor import Supervisor
from tests.marketplace.embedded.conftest import make_program, wait_until
folder = Path({str(folder)!r})
(folder / "a").mkdir(), (folder / "b").mkdir()
killed = Supervisor(folder, say=print)
killed.start(make_program(folder / "a", {FAMILY!r}, name="alive"), stage=0)
killed.start(make_program(folder / "b", {FAMILY!r}, name="dead"), stage=0)
wait_until(lambda: "".join(child.read_text() for child in folder.glob("?/child")).count("\\n") == 2)
killed._kept["dead"].process.kill()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", run], check=False).returncode == -signal.SIGKILL
    left = [recorded_pid(folder, "alive"), child_pid(folder / "a"), child_pid(folder / "b")]
    assert all(is_running(pid) for pid in left)

    assert end_leftovers(folder) == ["alive", "dead"]
    assert not any(is_running(pid) for pid in left)
    assert end_leftovers(folder) == []


def test_a_stranger_with_a_pid_that_was_ours_is_left_alone(folder):
    (folder / "run").mkdir()
    with subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True) as stranger:
        started = psutil.Process(stranger.pid).create_time() - psutil.boot_time()
        record = {"pid": stranger.pid, "started_s_after_boot": started - 1}
        (folder / "run" / "web.json").write_text(json.dumps(record))
        assert end_leftovers(folder) == []
        assert stranger.poll() is None
        stranger.kill()


def test_the_session_of_another_home_is_left_alone(folder):
    """Its number is recorded here, but its members carry no mark of ours."""
    (folder / "run").mkdir()
    other = make_program(folder, FAMILY, environ={MARK: "/another/home"})
    leader = start(other, log=folder / "log")
    member = child_pid(folder)
    leader.kill()
    leader.wait()
    (folder / "run" / "web.json").write_text(json.dumps({"pid": leader.pid, "started_s_after_boot": 1.0}))
    assert end_leftovers(folder) == []
    assert is_running(member)
    psutil.Process(member).kill()


def test_a_record_that_was_cut_off_is_no_obstacle(folder):
    (folder / "run").mkdir()
    (folder / "run" / "web.json").write_text('{"pid": 1')
    assert end_leftovers(folder) == []
