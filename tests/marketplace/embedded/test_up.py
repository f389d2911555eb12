"""`manage.py up`, the whole of it: from an empty folder to a marketplace, through kill -9, to nothing left."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from marketplace.embedded import up
from marketplace.embedded.addresses import free_port
from marketplace.embedded.programs import CannotStart
from tests.marketplace.embedded.conftest import wait_until
from tests.scenarios.conftest import READY_WITHIN_S

ROOT = Path(__file__).parents[3]
OURS = ("DATABASE_URL", "REDIS_URL", "GPUMARKET_HOME", "GPUMARKET_MODE", "GPUMARKET_SECRET_KEY")


@contextmanager
def running(home: Path, port: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run `up` until it is ready; its output goes to a file, as nobody reads along."""
    output = home.with_suffix(".out")
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "up", "--port", str(port), "--home", str(home), *options],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name not in OURS},
            stdout=file,
            stderr=file,
            text=True,
        )
    try:
        wait_until(lambda: "\nReady" in output.read_text() or process.poll() is not None, within_s=READY_WITHIN_S)
        assert process.poll() is None, output.read_text()
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def answer(url: str) -> bytes:
    """Return the body, or nothing as long as nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.read()
    except OSError:
        return b""


def processes_of(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(home) in " ".join(process.cmdline()) or process.environ().get("GPUMARKET_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def pid_of(home: Path, name: str) -> int:
    return json.loads((home / "run" / f"{name}.json").read_text())["pid"]


def test_a_marketplace_comes_up_survives_kill_9_and_leaves_nothing(folder):
    home, port = folder / "home", free_port()
    home.mkdir(mode=0o700)  # as mktemp -d makes them
    ready = f"http://127.0.0.1:{port}/readyz"

    with running(home, port) as first:
        connection = json.loads((home / "connection.json").read_text())
        assert connection["url"] == f"http://127.0.0.1:{port}"
        assert os.geteuid() != 0 or not (home / "postgres" / "data").is_symlink()
        for name in ("connection.json", "environment.json"):
            assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
        me = urllib.request.Request(f"{connection['url']}/api/v1/me")
        me.add_header("Authorization", f"Bearer {connection['token']}")
        with urllib.request.urlopen(me, timeout=20) as response:
            assert response.status == 200

        web = pid_of(home, "web")
        os.kill(web, signal.SIGKILL)
        wait_until(lambda: pid_of(home, "web") != web and answer(ready), within_s=20)
        assert "web was killed (SIGKILL) and is started again now." in home.with_suffix(".out").read_text()

        second = subprocess.run(
            [sys.executable, "manage.py", "up", "--port", str(port), "--home", str(home)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 1
        assert f"process {first.pid} is already up there" in second.stderr

        left = {pid_of(home, name) for name in ("web", "worker", "beat", "postgres", "redis")}
        first.kill()
        first.wait()

    with running(home, port) as again:
        assert not left & {process.pid for process in processes_of(home)}
        assert json.loads((home / "connection.json").read_text()) == connection
        again.send_signal(signal.SIGTERM)
        assert again.wait(timeout=20) == 0
    wait_until(lambda: not processes_of(home))
    assert list((home / "run").glob("*.json")) == []
    assert answer(ready) == b""


def test_a_port_that_is_taken_is_named_and_nothing_is_made(folder, capsys):
    with subprocess.Popen(
        [sys.executable, "-c", "import socket; s = socket.create_server(('127.0.0.1', 0));"
         "print(s.getsockname()[1], flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as taker:  # fmt: skip
        port = int(taker.stdout.readline())
        assert up.up(up.Options(port=port, home=folder / "home", fresh=False, agents=0)) == 1
        taker.kill()
    assert f"port {port} is taken on 127.0.0.1. Choose another with --port." in capsys.readouterr().err
    assert [path.name for path in (folder / "home").iterdir()] == ["up.lock"]


def test_fresh_refuses_what_is_no_home(folder, capsys):
    (folder / "thesis.tex").write_text("years of work")
    assert up.up(up.Options(port=free_port(), home=folder, fresh=True, agents=0)) == 1
    assert "nothing in it was touched" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


WATCH = """
import sys, time
from pathlib import Path
from marketplace.embedded.up import _watch_launcher
is_gone, note = _watch_launcher(), Path(sys.argv[1])
note.write_text("watching")
deadline = time.monotonic() + 1
while time.monotonic() < deadline and not is_gone():
    time.sleep(0.01)
note.write_text("ended" if is_gone() else "went on")
"""


@pytest.mark.parametrize(("launcher", "end"), [("uv", "ended"), ("bash", "went on")])
def test_it_ends_with_the_uv_that_launched_it_and_outlives_a_shell(folder, launcher, end):
    (folder / launcher).symlink_to(shutil.which("bash"))
    (folder / "watch.py").write_text(WATCH)
    command = f"{sys.executable} {folder / 'watch.py'} {folder / 'note'} & wait"
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([folder / launcher, "-c", command], env=environ) as shell:
        wait_until(lambda: (folder / "note").exists() and (folder / "note").read_text() == "watching")
        shell.kill()
    wait_until(lambda: (folder / "note").read_text() == end)


@pytest.mark.parametrize(("token", "file"), [(None, None), ("gmj_given", "n1/node.json")])
def test_a_home_and_a_database_of_different_marketplaces_are_refused(folder, token, file):
    if file:
        (folder / "nodes" / "n1").mkdir(parents=True)
        (folder / "nodes" / file).touch()
    (folder / "nodes").mkdir(exist_ok=True)
    marketplace = up.Marketplace(folder, up.Options(port=1, home=folder, fresh=False, agents=1))
    with pytest.raises(CannotStart, match="of different marketplaces"):
        marketplace._agent({"name": "n1", "join_token": token, "gpus": "simulated:H200:8:144384"})


def test_a_join_token_is_kept_until_the_node_knows_that_it_has_joined(folder):
    (folder / "nodes").mkdir()
    marketplace = up.Marketplace(folder, up.Options(port=1, home=folder, fresh=False, agents=1))
    node = {"name": "n1", "join_token": "gmj_given", "gpus": "simulated:H200:8:144384"}
    first = marketplace._agent(node)
    again = marketplace._agent(node | {"join_token": None})
    assert again.argv == first.argv
    file = Path(first.argv[first.argv.index("--join-token-file") + 1])
    assert file.read_text() == "gmj_given"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not {"DATABASE_URL", "GPUMARKET_SECRET_KEY"} & first.environ.keys()


@pytest.mark.parametrize("wrong", [["--port", "0"], ["--port", "x"], ["--port", "65536"], ["--agents", "-1"]])
def test_wrong_numbers_are_explained(wrong, capsys):
    with pytest.raises(SystemExit):
        up.main(wrong)
    assert "is not a whole number from" in capsys.readouterr().err


def test_a_home_that_cannot_be_written_is_named(capsys):
    assert up.up(up.Options(port=free_port(), home=Path("/proc/home"), fresh=False, agents=0)) == 1
    assert "Cannot start in /proc/home" in capsys.readouterr().err
