"""What NVML tells of one GPU becomes a condition, and a condition that is worse, or lasts, an event."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from provisioning.agent import health
from provisioning.agent.conditions import Condition, faults_of, findings, number_in
from provisioning.agent.events import NvmlEvents, SimulatedEvents
from provisioning.agent.health import REPLAYS_MAX, WINDOW_S, HealthWatch
from provisioning.agent.monitor import GpuMonitor
from provisioning.agent.simulated import SimulatedGpus
from provisioning.agent.state import Home
from tests.nvml import DRIVER_NOT_LOADED, LIBRARY_MISMATCH, Answer, Failure, FakeNvml
from tests.packages import needs
from tests.provisioning.agent.test_health import Notes, Script

Step = Callable[[float], None]
LINKS: dict[int, bool | None] = dict.fromkeys(range(4), True)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def after(script: Script, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> Step:
    """Look again after so many seconds."""
    now = 1000.0
    watch = HealthWatch(source=script, journal=notes)
    monkeypatch.setattr(health, "boottime", lambda: now)

    def step(seconds: float) -> None:
        nonlocal now
        now += seconds
        watch.step(0)

    return step


# --- what NVML tells --------------------------------------------------------------------------------------------------


@pytest.fixture
def first(own_nvml: FakeNvml) -> Callable[[], Condition]:
    """What the first GPU of the pretended machine says of itself."""
    pynvml.nvmlInit()
    source = NvmlEvents()
    return lambda: source.conditions()[own_nvml.uuid(0)]


@needs("gcc")
def test_a_sound_gpu_tells_that_all_is_well(first: Callable[[], Condition], own_nvml: FakeNvml) -> None:
    own_nvml.set(0, utilization=(97, 10))
    assert first() == Condition(
        recovery=0, uncorrected=0, sram_exceeded=False, remap_pending=False, remap_failed=False,
        links=dict.fromkeys(range(18), True), fabric="", is_hot=False, is_memory_hot=False, is_braked=False,
        is_pcie_narrow=False, is_pcie_slow=False, pcie_replays=0,
    )  # fmt: skip
    assert findings(first()) == {}


@needs("gcc")
def test_what_a_gpu_does_not_tell_is_neither_well_nor_ill(first: Callable[[], Condition], own_nvml: FakeNvml) -> None:
    unsupported = ("fabric", "sram_exceeded", "field.230", "field.91", "field.82", "pcie_width", "pcie_replay",
                   "clocks_event_reasons", "remapped_rows", "ecc.1.0", "temperature_threshold.2",
                   *(f"nvlink.{link}" for link in range(18)))  # fmt: skip
    own_nvml.set(0, dict.fromkeys(unsupported))
    assert first() == Condition()


@needs("gcc")
@pytest.mark.parametrize(
    ("answers", "name", "value"),
    [
        ({"sram_exceeded": 1}, "sram_exceeded", True),
        ({"fabric": (2, 0, 0)}, "fabric", "its registration is under way"),
        ({"fabric": (1, 0, 0)}, "fabric", "its registration has not begun"),
        ({"fabric": (3, 999, 0)}, "fabric", "its registration failed (999)"),
        ({"fabric": (3, 0, 1 | 1 << 4)}, "fabric", "degraded bandwidth, an unhealthy route"),
        ({"fabric": (3, 0, 2 | 2 << 4 | 1 << 8)}, "fabric", ""),
        ({"fabric": (3, 0, 5 << 8)}, "fabric", "a wrong configuration"),
        ({"fabric": (0, 0, 0)}, "fabric", None),
        ({"field.82": 96}, "is_memory_hot", True),
        ({"field.82": 95}, "is_memory_hot", False),
        ({"pcie_generation": 3}, "is_pcie_slow", None),  # Idle: to save power.
        ({"pcie_generation": 3, "utilization": (90, 1)}, "is_pcie_slow", True),
        ({"pcie_width": 8}, "is_pcie_narrow", True),
        ({"pcie_width": 8, "utilization": (90, 1)}, "is_pcie_slow", True),
        ({"field.214": 1, "field.214.3": 2}, "link_failures", 3),
        ({"clocks_event_reasons": 64}, "is_hot", True),
        ({"clocks_event_reasons": 128}, "is_braked", True),
    ],
)
def test_what_nvml_says_is_read(
    answers: Mapping[str, Answer], name: str, value: object, first: Callable[[], Condition], own_nvml: FakeNvml
) -> None:
    own_nvml.set(0, answers)
    assert getattr(first(), name) == value


@needs("gcc")
@pytest.mark.parametrize(
    ("answer", "count", "state"),
    [
        ((0, ""), 18, False),
        (None, 18, None),  # Not supported: nobody can tell.
        (Failure(4), 18, None),
        (Failure(999), 18, False),  # It was asked, and answers that something is wrong.
        (Failure(2), None, "no such link"),
    ],
)
def test_a_link_is_active_or_not_or_cannot_be_told(
    answer: Answer, count: Answer, state: object, first: Callable[[], Condition], own_nvml: FakeNvml
) -> None:
    own_nvml.set(0, {"nvlink.3": answer, "field.91": count})
    links = first().links
    assert links is not None
    assert links.get(3, "no such link") == state
    accepted = faults_of(first(), links=range(18))
    assert accepted == ([] if state is None else ["NVLink 3 is not active"])


@pytest.mark.parametrize(("kind", "field"), [(0, "dVal"), (1, "uiVal"), (2, "ulVal"), (3, "ullVal"), (5, "siVal")])
def test_what_a_field_holds_is_read_as_what_it_is(kind: int, field: str) -> None:
    answer = pynvml.c_nvmlFieldValue_t(valueType=kind)
    answer.value.ullVal = 2**64 - 1  # What another answer left there.
    setattr(answer.value, field, 5)
    assert number_in(answer) == 5
    answer.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED
    assert number_in(answer) is None


@needs("gcc")
def test_links_behind_the_last_are_no_links(first: Callable[[], Condition], own_nvml: FakeNvml) -> None:
    own_nvml.set(0, {"field.91": 16})
    assert faults_of(first(), links=range(18)) == ["NVLink 16, 17 is not active"]


@needs("gcc")
def test_a_driver_that_does_not_answer_says_so_and_its_gpus_are_not_called_lost(own_nvml: FakeNvml) -> None:
    pynvml.nvmlInit()
    source = NvmlEvents()
    assert source.trouble() == ""
    for code in (DRIVER_NOT_LOADED, LIBRARY_MISMATCH):
        own_nvml.driver(error=code)
        assert source.trouble()
        assert source.conditions() == {}
    own_nvml.driver()
    assert source.trouble() == ""


# --- what becomes of it -----------------------------------------------------------------------------------------------


def test_a_driver_that_is_gone_for_half_a_minute_is_told_of_the_node(after: Step, script: Script, notes: Notes) -> None:
    script.driver = "Driver Not Loaded"
    after(0)
    after(20)
    script.driver = ""  # It was only loaded anew.
    after(1)
    script.driver = "RM/library version mismatch"
    after(1)
    after(25)
    assert notes.codes == []
    after(6)
    after(60)
    assert [(body["gpu"], body["code"], body["detail"]) for body in notes.bodies] == [
        ("", "driver", "RM/library version mismatch")
    ]


def test_a_driver_that_hangs_is_told_by_whoever_does_not_wait_for_it(tmp_path: Path, notes: Notes) -> None:
    kept = Home(tmp_path / "home")
    kept.begin_epoch()
    watch = HealthWatch(source=Script(), journal=notes)
    source = SimulatedGpus(model="H200", count=1, memory_mib=1000, seed="s", home=tmp_path)
    monitor = GpuMonitor(source=source, home=kept, changed=lambda: None, went_silent=watch.driver_hangs)
    monitor.inventory()
    assert notes.codes == []
    monitor._looked_at = time.monotonic() - 1e6
    for _ in range(2):
        assert not monitor.inventory().gpus[0].healthy
    assert notes.codes == ["driver"]
    kept.close()


def test_a_fabric_that_is_not_complete_at_once_is_waited_for(after: Step, script: Script, notes: Notes) -> None:
    script.state = {"GPU-a": Condition(fabric="its registration is under way")}
    after(0)
    after(100)
    script.state = {"GPU-a": Condition(fabric="")}
    after(10)
    assert notes.codes == []
    script.state = {"GPU-a": Condition(fabric="its registration failed (999)")}
    after(10)
    after(130)
    after(10)
    assert notes.codes == ["fabric"]


def test_a_link_that_was_active_and_is_not_is_told_and_one_that_never_was_is_not(
    after: Step, script: Script, notes: Notes
) -> None:
    script.state = {"GPU-a": Condition(links=LINKS | {3: False})}
    after(1)
    script.state = {"GPU-a": Condition(links=LINKS | {2: None, 3: False})}
    after(1)
    script.state = {"GPU-a": Condition()}
    after(1)
    assert notes.codes == [], "what cannot be told is not broken"
    script.state = {"GPU-a": Condition(links=LINKS | {2: False, 3: False})}
    after(1)
    after(1)
    assert [(body["code"], body["detail"]) for body in notes.bodies] == [("nvlink", "NVLink 2 is not active any more")]


def test_a_link_that_could_not_be_recovered_is_told_though_it_is_back(
    after: Step, script: Script, notes: Notes
) -> None:
    for failures in (4, 4, 5, 5, 0):
        script.state = {"GPU-a": Condition(links=LINKS, link_failures=failures)}
        after(1)
    assert notes.codes == ["nvlink"]


@pytest.mark.parametrize(
    ("ill", "code"), [("is_memory_hot", "memory_thermal"), ("is_pcie_slow", "pcie"), ("is_hot", "thermal")]
)
def test_what_slows_a_gpu_down_for_most_of_ten_minutes_is_told_once(
    ill: str, code: str, after: Step, script: Script, notes: Notes
) -> None:
    for second in range(0, 580, 10):
        script.state = {"GPU-a": replace(Condition(), **{ill: second % 50 != 0})}
        after(10)
    assert notes.codes == []
    for _ in range(4):
        script.state = {"GPU-a": replace(Condition(), **{ill: True})}
        after(10)
    assert notes.codes == [code]


def test_an_idle_gpu_says_nothing_of_its_pcie_link(after: Step, script: Script, notes: Notes) -> None:
    for second in range(0, 1300, 10):
        script.state = {"GPU-a": Condition(is_pcie_slow=True if second == 0 else None)}
        after(10)
    script.state = {"GPU-a": Condition(is_pcie_slow=True)}
    after(10)
    assert notes.codes == []


def test_packets_that_are_sent_again_too_often_are_told(after: Step, script: Script, notes: Notes) -> None:
    count = 0
    for _ in range(100):  # Seven a minute is what a link may do.
        count += 7
        script.state = {"GPU-a": Condition(pcie_replays=count)}
        after(60)
    script.state = {"GPU-a": Condition(pcie_replays=0)}  # The driver was loaded anew.
    after(60)
    assert notes.codes == []
    script.state = {"GPU-a": Condition(pcie_replays=REPLAYS_MAX + 1)}
    after(60)
    after(WINDOW_S)
    assert notes.codes == ["pcie"]


def test_what_is_written_into_a_home_ails_a_simulated_gpu_for_as_long_as_it_stands_there(tmp_path: Path) -> None:
    source = SimulatedEvents(home=tmp_path, gpus=lambda: [(0, "GPU-a"), (1, "GPU-b")])
    assert not any(faults_of(condition) for condition in source.conditions().values())
    (tmp_path / "simulated-ills").write_text("0 sram_exceeded\n0 nvlink 3 7\n1 fabric is not there\nx y\n0 is_lost\n")
    found = source.conditions()
    assert list(findings(found["GPU-a"])) == ["sram_threshold"]
    assert "NVLink 3, 7 is not active" in faults_of(found["GPU-a"])
    assert findings(found["GPU-b"]) == {"fabric": "its NVLink domain: is not there"}
    (tmp_path / "simulated-ills").unlink()
    assert not any(faults_of(condition) for condition in source.conditions().values())
