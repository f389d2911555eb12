"""A shop to talk to, and the command line as a function that returns what it printed and how it exited."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from marketplace.cli import client, logs, progress, run
from marketplace.cli.main import exit_code_of
from tests.marketplace.cli.shop import TOKEN, Shop


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def records(self):
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def shop():
    shop = Shop()
    shop.open()
    yield shop
    shop.close()


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    """Nobody's real login is read or written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for name in [name for name in os.environ if name.startswith("GPUMARKET_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture(autouse=True)
def no_time_to_wait(monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LOOK_S", 0.001)
    monkeypatch.setattr(progress, "SLOWEST_LOOK_S", 0.01)
    monkeypatch.setattr(logs, "SOONEST_LOOK_S", 0.001)
    monkeypatch.setattr(logs, "SLOWEST_LOOK_S", 0.01)
    monkeypatch.setattr(run, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(client, "PATIENCE_WITH_STRANGERS_S", 0.05)


@pytest.fixture
def gpumarket(shop, monkeypatch, capsysbinary):
    """Run one command line against the shop."""
    monkeypatch.setenv("GPUMARKET_URL", shop.url)
    monkeypatch.setenv("GPUMARKET_TOKEN", TOKEN)

    def say(*arguments):
        capsysbinary.readouterr()
        code = exit_code_of(list(arguments))
        out, err = capsysbinary.readouterr()
        return Said(code, out.decode(), err.decode())

    return say


@pytest.fixture
def process(shop, empty_home):
    """Start the command line as a process of its own, as a person would."""
    started = []

    def start(*arguments, **options):
        env = {**os.environ, "GPUMARKET_URL": shop.url, "GPUMARKET_TOKEN": TOKEN, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", "from marketplace.cli.main import run; run()", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        started.append(subprocess.Popen(command, env=env, cwd=empty_home, **pipes))
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.communicate()


REPOSITORY = Path(__file__).parents[3]
