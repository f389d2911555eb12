"""A test run that is killed leaves nothing of its cluster, jobs and their slurmstepd included."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.packages import needs
from tests.provisioning.agent.cast import eventually, is_running
from tests.scenarios.conftest import ROOT
from tests.slurm import cluster

pytestmark = needs("slurmctld")

OWNER = """
import time
from tests.slurm import cluster
made = cluster.begin(cluster.new_folder())
made.run("sbatch", "-p", "market", "-o", "/dev/null", "-D", "/tmp", "--wrap", "sleep 1000")
while "RUNNING" not in made.run("squeue", "-h", "-o", "%T"):
    time.sleep(0.1)
print(made.keeper.pid, made.folder, flush=True)
time.sleep(1000)
"""


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[str]]:
    """A run with a cluster and a job on it."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    yield owner
    owner.kill()
    owner.communicate()
    cluster.clear_after_killed_runs()


@pytest.mark.parametrize("who", ["the run", "the run and its keeper"])
def test_a_killed_run_leaves_no_process_of_its_cluster(owner: subprocess.Popen[str], who: str) -> None:
    assert owner.stdout is not None
    keeper, folder = owner.stdout.readline().split()

    def children() -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for process in psutil.Process(int(keeper)).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                found.setdefault(process.name(), []).append(process.pid)
        return found

    expected = {"munged", "slurmctld", "slurmd", "slurmrestd", "slurmstepd", "sleep"}
    eventually(lambda: expected <= set(children()))
    kept = [pid for pids in children().values() for pid in pids]
    if who == "the run and its keeper":
        psutil.Process(int(keeper)).kill()
    owner.kill()
    owner.wait()
    if who == "the run and its keeper":
        assert all(is_running(pid) for pid in kept), "nobody was there to end them"
        cluster.clear_after_killed_runs()
        assert not Path(folder).exists()
    eventually(lambda: not any(is_running(pid) for pid in kept))
    cluster.clear_after_killed_runs()
    assert not Path(folder).exists()


def test_what_a_living_run_has_is_left_alone() -> None:
    folder = cluster.new_folder()
    cluster.clear_after_killed_runs()
    assert folder.exists()
    folder.rmdir()
