"""What an agent notices of its GPUs, and that it tells the same thing once."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from provisioning.agent import health
from provisioning.agent.conditions import Condition, findings
from provisioning.agent.events import Event, KernelLog, NvmlEvents, SimulatedEvents, pci_address
from provisioning.agent.health import HealthWatch
from tests.nvml import FakeNvml
from tests.provisioning.agent.cast import AgentRun, eventually
from tests.provisioning.agent.control_plane import ControlPlane


class Notes:
    """A journal in memory."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.kinds: list[str] = []

    def append(self, kind: str, body: dict[str, Any]) -> None:
        self.kinds.append(kind)
        self.bodies.append(body)

    @property
    def codes(self) -> list[str]:
        return [body["code"] for body in self.bodies]


class Script:
    """A source that says what the test says."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.state: dict[str, Condition] = {}
        self.driver = ""

    def wait(self, timeout_s: float) -> list[Event]:
        events, self.events = self.events, []
        return events

    def conditions(self) -> dict[str, Condition]:
        return self.state

    def trouble(self) -> str:
        return self.driver

    def addresses(self) -> dict[str, str]:
        return {"0000:17:00": "GPU-a"}


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def watch(script: Script, notes: Notes) -> HealthWatch:
    return HealthWatch(source=script, journal=notes)


def test_nvml_and_the_kernel_log_tell_of_one_error_and_it_is_told_once(
    watch: HealthWatch, script: Script, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(health, "boottime", lambda: now)
    for source in ("nvml", "kmsg", "nvml"):
        script.events = [Event("GPU-a", source, "xid:79")]
        watch.step(0)
    script.events = [Event("GPU-b", "nvml", "xid:79"), Event("GPU-a", "nvml", "xid:45")]
    watch.step(0)
    assert [(body["gpu"], body["code"]) for body in notes.bodies] == [
        ("GPU-a", "xid:79"), ("GPU-b", "xid:79"), ("GPU-a", "xid:45"),
    ]  # fmt: skip
    now += health.DUPLICATE_S
    script.events = [Event("GPU-a", "kmsg", "xid:79")]
    watch.step(0)
    assert notes.codes.count("xid:79") == 3


@pytest.mark.parametrize(
    ("condition", "codes"),
    [
        (Condition(), []),
        (Condition(recovery=0, uncorrected=0, remap_pending=False, remap_failed=False), []),
        (Condition(is_lost=True, recovery=2), ["lost"]),
        (Condition(needs_reset=True), ["reset_required"]),
        (Condition(recovery=2), ["recovery:2"]),
        (Condition(uncorrected=3, remap_pending=True), ["ecc_dbe", "row_remap_pending"]),
        (Condition(remap_failed=True), ["row_remap_failed"]),
        (Condition(sram_exceeded=True), ["sram_threshold"]),
        (Condition(sram_exceeded=False, fabric="", is_pcie_narrow=False), []),
        (Condition(fabric="its registration failed (999)"), ["fabric"]),
    ],
)
def test_what_a_condition_amounts_to(condition: Condition, codes: list[str]) -> None:
    assert list(findings(condition)) == codes


def test_what_stays_bad_is_told_once_and_what_comes_back_is_told_again(
    watch: HealthWatch, script: Script, notes: Notes
) -> None:
    for lost in (True, True, False, True):
        script.state = {"GPU-a": Condition(is_lost=lost)}
        watch.step(0)
    assert notes.codes == ["lost", "lost"]


def test_nothing_is_told_of_a_gpu_that_we_took_away_ourselves(watch: HealthWatch, script: Script, notes: Notes) -> None:
    with watch.excused("GPU-a"), watch.excused("GPU-a"):
        script.state = {"GPU-a": Condition(is_lost=True)}
        script.events = [Event("GPU-a", "kmsg", "xid:79")]
        watch.step(0)
    assert notes.codes == []
    watch.step(0)
    assert notes.codes == ["lost"], "what is still wrong afterwards is news"


def test_an_error_of_the_memory_during_a_wipe_is_told(watch: HealthWatch, script: Script, notes: Notes) -> None:
    with watch.excused("GPU-a"):
        script.events = [Event("GPU-a", "kmsg", "xid:79"), Event("GPU-a", "kmsg", "xid:48")]
        watch.step(0)
    assert notes.codes == ["xid:48"]


def test_heat_is_told_when_it_lasts(
    watch: HealthWatch, script: Script, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(health, "boottime", lambda: now)
    for second in range(0, 1300, 10):
        now = float(second)
        script.state = {"GPU-a": Condition(is_hot=second % 30 != 0 and second < 1000, is_braked=second < 60)}
        watch.step(0)
    assert notes.codes == ["thermal"]


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (
            "NVRM: Xid (PCI:0000:17:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            Event("GPU-a", "kmsg", "xid:79", "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."),
        ),
        ("NVRM: Xid (PCI:0000:99:00): 48, DBE", Event("", "kmsg", "xid:48", "PCI:0000:99:00 DBE")),
        (
            "nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
            Event("", "kmsg", "sxid:20034", "PCI:0000:a9:00.0 Fatal, Link 30 LTSSM Fault Up"),
        ),
        ("NVRM: loading NVIDIA UNIX Open Kernel Module", None),
        (
            "EDAC MC0: 1 UE memory read error on CPU_SrcID#0_DIMM#0 (slot:0 page:0x5f3a1 offset:0x0 grain:32)",
            Event(
                "", "kmsg", "host", "memory read error on CPU_SrcID#0_DIMM#0 (slot:0 page:0x5f3a1 offset:0x0 grain:32)"
            ),
        ),
        ("EDAC MC0: 1 CE memory read error on CPU_SrcID#0_DIMM#0 (slot:0 page:0x5f3a1 offset:0x0 grain:32)", None),
        (
            "Memory failure: 0x5f3a1: recovery action for dirty LRU page: Recovered",
            Event("", "kmsg", "host", "0x5f3a1: recovery action for dirty LRU page: Recovered"),
        ),
        (
            "{1}[Hardware Error]: event severity: recoverable",
            Event("", "kmsg", "host", "event severity: recoverable"),
        ),
        ("{1}[Hardware Error]: event severity: corrected", None),
        (
            "mce: [Hardware Error]: CPU 2: Machine Check: 0 Bank 5: bea00000000c0135",
            Event("", "kmsg", "host", "CPU 2: Machine Check: 0 Bank 5: bea00000000c0135"),
        ),
        ("mce: [Hardware Error]: CPU 2: Machine Check: 0 Bank 7: 9c00004001010091", None),
        ("mce: [Hardware Error]: Machine check events logged", None),
        ("usb 1-1: new device (PCI:0000:17:00): 79", None),
    ],
)
def test_lines_of_the_kernel_log(line: str, event: Event | None, tmp_path: Path, script: Script) -> None:
    (tmp_path / "kmsg").touch()
    log = KernelLog(home=tmp_path, addresses=script.addresses, path=tmp_path / "kmsg")
    assert log.read(line) == event
    log.close()


@pytest.mark.parametrize(
    "line",
    [
        "{name}[77]: segfault at 0 ip 00005648991f916b sp 00007ffd3967a290 error 6 in {file}[116b,5648991f9000+1000]",
        "{name} invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
        "{name}: page allocation failure: order:9, mode:0x40dc0(GFP_KERNEL)",
        "Memory cgroup out of memory: Killed process 77 ({name}) total-vm:8kB, anon-rss:4kB, UID:0 pgtables:40kB",
    ],
)
@pytest.mark.parametrize(
    "told",
    [
        "NVRM: Xid (PCI:0000:17:00): 79, GPU has fallen off the bus.",
        "nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 20034, Fatal",
        "EDAC MC0: 1 UE memory read error (page:0x5f3a1 offset:0x0)",
        "Memory failure: 0x5f3a1: recovery action",
        "{1}[Hardware Error]: event severity: fatal",
        "mce: [Hardware Error]: CPU 2: Machine Check: 0 Bank 5: bea00000000c0135",
    ],
)
def test_no_name_of_a_process_or_a_file_passes_for_the_kernels_word(
    line: str, told: str, tmp_path: Path, script: Script
) -> None:
    (tmp_path / "kmsg").touch()
    log = KernelLog(home=tmp_path, addresses=script.addresses, path=tmp_path / "kmsg")
    for length in range(16):
        assert log.read(line.format(name=told[:length], file=told)) is None
    assert log.read(told) is not None
    log.close()


def test_what_programs_write_into_the_kernel_log_is_not_the_kernels_word(tmp_path: Path, script: Script) -> None:
    kmsg = tmp_path / "kmsg"
    kmsg.touch()
    log = KernelLog(home=tmp_path, addresses=script.addresses, path=kmsg)
    words = "-;NVRM: Xid (PCI:0000:17:00): {}, words\n"
    kmsg.write_text("12,1,1000," + words.format(79) + "30,2,2000," + words.format(48) + "4,3,3000," + words.format(13))
    assert [event.code for event in log.wait(0)] == ["xid:13"]
    log.close()


def test_the_kernel_log_goes_on_where_an_earlier_agent_stopped(tmp_path: Path, script: Script) -> None:
    kmsg = tmp_path / "kmsg"
    line = "4,{0},{0}000,-;NVRM: Xid (PCI:0000:17:00): {1}, words\n SUBSYSTEM=pci\n"
    kmsg.write_text(line.format(7, 13))
    log = KernelLog(home=tmp_path, addresses=script.addresses, path=kmsg)
    assert log.wait(0) == [], "what was before the first start is history"
    with kmsg.open("a") as file:
        file.write(line.format(8, 31))
    assert [event.code for event in log.wait(0)] == ["xid:31"]
    log.close()
    with kmsg.open("a") as file:
        file.write(line.format(9, 79))
    log = KernelLog(home=tmp_path, addresses=script.addresses, path=kmsg)
    assert [event.code for event in log.wait(0)] == ["xid:79"]
    log.close()


def test_pci_addresses_compare_however_they_are_written() -> None:
    assert {pci_address(text) for text in ("00000000:17:00.0", "0000:17:00", "0000:17:00.0")} == {"0000:17:00"}


def test_a_simulated_event_is_taken_from_its_file_once(tmp_path: Path) -> None:
    source = SimulatedEvents(home=tmp_path, gpus=lambda: [(0, "GPU-a"), (1, "GPU-b")])
    (tmp_path / "simulated-events").write_text("1 xid:79 fell off\nx driver gone\n9 xid:1\nnonsense\n")
    assert source.wait(0.1) == [Event("GPU-b", "agent", "xid:79", "fell off"), Event("", "agent", "driver", "gone")]
    assert source.wait(0.1) == []
    (tmp_path / "simulated-lost").write_text("1")
    assert [uuid for uuid, condition in source.conditions().items() if condition.is_lost] == ["GPU-b"]


def nvml_watch(notes: Notes) -> tuple[HealthWatch, threading.Event, threading.Thread]:
    import pynvml

    pynvml.nvmlInit()
    watch, stopping = HealthWatch(source=NvmlEvents(), journal=notes), threading.Event()
    thread = threading.Thread(target=watch.run, args=(stopping,), daemon=True)
    thread.start()
    return watch, stopping, thread


def test_nvml_tells_of_an_error_and_the_verdict_is_read_at_once(own_nvml: FakeNvml) -> None:
    notes = Notes()
    _, stopping, thread = nvml_watch(notes)
    time.sleep(0.3)
    try:
        own_nvml.set(2, {"field.230": 2, "remapped_rows": (0, 1, 1, 0)})
        own_nvml.xid(2, 119)
        eventually(lambda: {"xid:119", "recovery:2", "row_remap_pending"} <= set(notes.codes))
        assert len({body["gpu"] for body in notes.bodies}) == 1
        own_nvml.lose(5)
        eventually(lambda: "lost" in notes.codes)
        assert {body["gpu"] for body in notes.bodies if body["code"] == "xid:79"} <= {own_nvml.uuid(5)}
        own_nvml.take_out(6)
        eventually(lambda: notes.codes.count("lost") == 2)
        own_nvml.heal(5)
        time.sleep(2.5)  # NVML tells a set of events only what comes after it was made.
        own_nvml.xid(1, 13)
        eventually(lambda: "xid:13" in notes.codes)
    finally:
        stopping.set()
        thread.join(timeout=5)


def test_what_a_gpu_does_not_tell_is_no_event(own_nvml: FakeNvml) -> None:
    import pynvml

    pynvml.nvmlInit()
    own_nvml.set(0, {"field.230": None, "remapped_rows": None, "clocks_event_reasons": None})
    uuid = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0))
    condition = NvmlEvents().conditions()[uuid]
    assert (condition.recovery, condition.remap_pending, condition.is_hot) == (None, None, None)


def test_an_event_reaches_the_server_long_before_the_next_report_is_due(
    start_agent: Any, home: Path, plane: ControlPlane
) -> None:
    plane.poll_after_ms = 600_000
    agent: AgentRun = start_agent()
    eventually(lambda: plane.reports and plane.last["assignments"] == [])
    eventually(lambda: "inventory" in agent.log)
    (home / "new").write_text("0 xid:79 GPU has fallen off the bus\n")
    (home / "new").rename(home / "simulated-events")
    eventually(lambda: plane.events)
    body = plane.events[0]["body"]
    assert (plane.events[0]["kind"], body["code"], body["source"]) == ("health", "xid:79", "agent")
    assert body["gpu"].startswith("GPU-")
