"""A real Slurm cluster on this machine: munged, slurmctld, four slurmd with eight fake GPUs each, and slurmrestd.

Everything lives in one private folder and on free ports of 127.0.0.1, and is
ended by its own process id; a keeper ends the rest. The user `nobody` is Slurm's own here, so that one
token may run jobs and drain nodes; slurmrestd wants to be somebody else.
"""

import base64
import hashlib
import hmac
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.slurm.keeper import Keeper

NODES, GPUS = ("gpu1", "gpu2", "gpu3", "gpu4"), 8
USER, USER_ID, REST_ID = "nobody", 65534, 1
PLAIN_USER = "games"  # Whom every Debian knows, and who is nobody in particular to Slurm.
NULL_DEVICE = os.makedev(1, 3)
PREFIX = "gpumarket-slurm-"
STARTS_WITHIN_S = 40

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key={folder}/jwt.key
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/state/slurmctld.pid
SlurmctldLogFile={folder}/state/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
MailProg=/bin/true
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
GresTypes=gpu
MpiDefault=none
ReturnToService=1
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
KillWait=2
SlurmdTimeout=30
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=1,bf_interval=1
NodeName=gpu[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=64 RealMemory=100000 \
Gres=gpu:h100:8 Feature=rack-r1
NodeName=gpu[3-4] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{third}-{fourth}] CPUs=64 RealMemory=100000 \
Gres=gpu:h100:8 Feature=rack-r2
PartitionName=market Nodes=gpu[1-4] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=spot Nodes=gpu[1-4] MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL
"""


@dataclass
class SlurmCluster:
    """A cluster that runs; `stop` and `start` end and begin one of its daemons in the middle of a test."""

    folder: Path
    port: int
    rest_port: int
    keeper: Keeper
    running: dict[str, int] = field(default_factory=dict)  # The daemons' pids.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def log_path(self) -> Path:
        return self.folder / "logs"

    def token(self, *, life_s: int = 3600, user: str = USER) -> str:
        """Return a JSON Web Token (RFC 7519, HS256) that lets its bearer in as Slurm's own user, or as another."""
        now = int(time.time())
        parts = ({"alg": "HS256", "typ": "JWT"}, {"sun": user, "iat": now, "exp": now + life_s})
        text = ".".join(_base64(json.dumps(part).encode()) for part in parts)
        key = (self.folder / "jwt.key").read_bytes()
        return f"{text}.{_base64(hmac.digest(key, text.encode(), hashlib.sha256))}"

    def run(self, *command: str) -> str:
        """Run one of Slurm's own commands here and return what it printed."""
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=True, timeout=20)
        return done.stdout

    def queue(self) -> list[list[str]]:
        """Return what squeue shows: name, state, nodes and GPUs of each job that has not ended."""
        lines = self.run("squeue", "-h", "-a", "-t", "all", "-o", "%j|%T|%N|%b").splitlines()
        ended = {"COMPLETED", "FAILED", "CANCELLED", "PREEMPTED", "NODE_FAIL", "TIMEOUT"}
        return [line.split("|") for line in lines if line.split("|")[1] not in ended]

    def start(self, name: str) -> None:
        """Start one daemon: munged, slurmctld, slurmrestd or a node."""
        command, user = self._command(name)
        environment = self._environment() | ({"SLURM_JWT": "daemon"} if name == "slurmrestd" else {})
        self.running[name] = self.keeper.start(
            command=command, env=environment, user=user, log=str(self.folder / f"{name}.out"), folder=str(self.folder)
        )

    def stop(self, name: str, *, how: signal.Signals = signal.SIGTERM) -> None:
        """End one daemon, hard if it does not end by itself."""
        pid = self.running.pop(name)
        os.kill(pid, how)
        until = time.monotonic() + 5
        while psutil.pid_exists(pid):
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def restart(self, name: str) -> None:
        self.stop(name)
        self.start(name)

    def tidy(self) -> None:
        """Cancel every job, lift every drain, and wait until all nodes are idle: the next test begins afresh."""
        for user in (USER, PLAIN_USER, "root"):
            self.run("scancel", "-u", user)
        for node in NODES:
            if "DRAIN" in self.run("scontrol", "show", "node", node):
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self._wait("an idle cluster", lambda: not self.queue() and len(_idle(self)) == len(NODES))

    def wait_for_controller(self) -> None:
        self._wait("slurmctld", lambda: _listens(self.port))

    def _wait(self, what: str, is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + STARTS_WITHIN_S
        while not is_so():
            assert time.monotonic() < until, f"{what} is not ready:\n{self._logs()}"
            time.sleep(0.05)

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-1500:] for path in self.folder.glob("*.out"))

    def _environment(self) -> dict[str, str]:
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        return {"PATH": path, "SLURM_CONF": str(self.folder / "slurm.conf"), "LANG": "C.UTF-8"}

    def _command(self, name: str) -> tuple[list[str], int | None]:
        folder = self.folder
        if name == "munged":
            names = ("key-file=munge.key", "socket=munge.sock", "pid-file=munged.pid", "log-file=munged.log",
                     "seed-file=munged.seed")  # fmt: skip
            options = [f"--{option.replace('=', f'={folder}/')}" for option in names]
            return ["/usr/sbin/munged", "--foreground", "--num-threads=2", *options], None
        if name == "slurmctld":
            # -c forgets what was before; a restart in the middle of a test must remember.
            first = [] if any((folder / "state").glob("job_state*")) else ["-c"]
            return ["/usr/sbin/slurmctld", "-D", *first], None
        if name == "slurmrestd":
            address = f"127.0.0.1:{self.rest_port}"
            return ["/usr/sbin/slurmrestd", "-a", "rest_auth/jwt", "-s", "openapi/v0.0.38", address], REST_ID
        return ["/usr/sbin/slurmd", "-D", "-N", name], None


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> int:
    """Return the first of `count` ports in a row that nobody uses now, below those of outgoing connections."""
    while True:
        first = 20_000 + secrets.randbelow(10_000)
        if not any(_listens(port) for port in range(first, first + count)):
            return first


def begin(folder: Path) -> SlurmCluster:
    """Start a cluster in an empty folder whose parents others may enter; return it once every node is idle."""
    port = _free_ports(2 + len(NODES))
    cluster = SlurmCluster(folder, port, port + 1 + len(NODES), Keeper(folder))
    _lay_out(cluster)
    try:
        cluster.start("munged")
        cluster._wait("munged", (folder / "munge.sock").exists)
        cluster.start("slurmctld")
        cluster.wait_for_controller()
        for name in (*NODES, "slurmrestd"):
            cluster.start(name)
        cluster._wait("slurmrestd", lambda: _listens(cluster.rest_port))
        cluster._wait("the nodes", lambda: len(_idle(cluster)) == len(NODES))
    except BaseException:
        end(cluster)
        raise
    return cluster


def end(cluster: SlurmCluster) -> None:
    """End every daemon, the controller first, so that it does not mourn its nodes, and what jobs are left."""
    for name in reversed(list(cluster.running)):
        cluster.stop(name, how=signal.SIGKILL if name == "slurmrestd" else signal.SIGTERM)
    cluster.keeper.close()


def _idle(cluster: SlurmCluster) -> list[Any]:
    headers = {"X-SLURM-USER-NAME": USER, "X-SLURM-USER-TOKEN": cluster.token()}
    nodes = httpx.get(f"{cluster.url}/slurm/v0.0.38/nodes", headers=headers).json()["nodes"]
    return [node for node in nodes if node["state"] == "idle" and not node["state_flags"]]


def _lay_out(cluster: SlurmCluster) -> None:
    folder = cluster.folder
    folder.chmod(0o755)
    for name, mode, owner in (("dev", 0o755, 0), ("state", 0o755, USER_ID), ("logs", 0o777, USER_ID)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
        os.chown(folder / name, owner, owner)
    for index in range(GPUS):
        device = folder / "dev" / f"gpu{index}"
        os.mknod(device, 0o666 | 0o020000, NULL_DEVICE)
        device.chmod(0o666)
    for name, owner in (("munge.key", 0), ("jwt.key", USER_ID)):
        (folder / name).write_bytes(secrets.token_bytes(64))
        (folder / name).chmod(0o600)
        os.chown(folder / name, owner, owner)
    ports = range(cluster.port + 1, cluster.port + 1 + len(NODES))
    names = dict(zip(("first", "second", "third", "fourth"), ports, strict=True))
    text = SLURM_CONF.format(folder=folder, host=socket.gethostname(), port=cluster.port, user=USER, **names)
    (folder / "slurm.conf").write_text(text)
    gres = f"NodeName=gpu[1-4] Name=gpu Type=h100 File={folder}/dev/gpu[0-{GPUS - 1}]\n"
    (folder / "gres.conf").write_text(gres)


def fresh() -> Iterator[SlurmCluster]:
    """A cluster of one's own."""
    clear_after_killed_runs()
    folder = new_folder()
    running = begin(folder)
    yield running
    end(running)
    shutil.rmtree(folder, ignore_errors=True)


def new_folder() -> Path:
    """Return a folder for a cluster whose name says whose it is."""
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))


def clear_after_killed_runs() -> None:
    """End what is left of clusters whose test run and keeper were both killed, by the folder that it lives in."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}[0-9]*-*"):
        if psutil.pid_exists(int(folder.name.removeprefix(PREFIX).partition("-")[0])):
            continue
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = [*process.cmdline(), process.cwd(), process.environ().get("SLURM_CONF", "")]
                if any(str(folder) in word for word in words):
                    process.kill()
        shutil.rmtree(folder, ignore_errors=True)
