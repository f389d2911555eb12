"""GPU sources keep one promise: a value that is not there is None, a GPU that does not answer is not healthy."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from provisioning.agent.gpus import Gpu, GpuSourceError, Link, Reading
from provisioning.agent.monitor import GpuMonitor
from provisioning.agent.nvml import NvmlGpus, in_words
from provisioning.agent.simulated import SimulatedGpus
from provisioning.agent.sources import open_source
from provisioning.agent.state import Home
from tests.nvml import DRIVER_NOT_LOADED, LIBRARY_MISMATCH, RESET_REQUIRED, Failure, FakeNvml, compile_library
from tests.packages import needs

MEBI = 1 << 20
UNTOLD = {"uuid"}


@pytest.fixture
def gpus(own_nvml: FakeNvml) -> NvmlGpus:
    return NvmlGpus()


def read(source: NvmlGpus) -> tuple[list[Gpu], list[Reading]]:
    found = source.read(busy=frozenset())
    return [gpu for gpu, _ in found], [reading for _, reading in found]


@needs("gcc")
def test_a_gpu_tells_what_it_is(gpus: NvmlGpus, own_nvml: FakeNvml) -> None:
    first = read(gpus)[0][0]
    assert (first.uuid, first.index, first.model, first.memory_mib, first.healthy) == (
        own_nvml.uuid(0), 0, "H200", 143_771, True,
    )  # fmt: skip
    assert first.facts == {
        "serial": "1650000000", "board_part": "900-21010-0040-000", "vbios": "96.00.BC.00.01",
        "minor_number": 0,
        "pci_bus_id": "00000000:17:00.0", "pcie_generation_max": 5, "pcie_width_max": 16, "numa_node": 0,
        "power_limit_mw": 700_000, "ecc": True, "mig": False, "mig_devices": "", "nvlinks": 18, "nvlinks_up": 18,
        "nvlinks_down": "", "nvlinks_active": " ".join(map(str, range(18))),
    }  # fmt: skip
    assert gpus.driver == "580.95.05"


@needs("gcc")
def test_every_meter_is_read(gpus: NvmlGpus, own_nvml: FakeNvml) -> None:
    own_nvml.set(
        0,
        {"temperature.0": 61, "field.82": 77, "clock.1": 1980, "clock.2": 3201, "ecc.0.0": 1, "ecc.1.0": 2,
         "ecc.0.1": 3, "ecc.1.1": 4},
        utilization=(97, 40), memory_bytes=(143_771 * MEBI, 512 * MEBI, 0), power_mw=512_345, energy_mj=9,
        clocks_event_reasons=4 | 64, pcie_replay=7, remapped_rows=(1, 2, 1, 0),
    )  # fmt: skip
    assert read(gpus)[1][0] == Reading(
        uuid=own_nvml.uuid(0), utilization_percent=97, memory_used_mib=512, power_mw=512_345, temperature_c=61,
        millijoules=9, memory_temperature_c=77, sm_clock_mhz=1980, memory_clock_mhz=3201,
        clocks_event_reasons=("sw_power_cap", "hw_thermal"), pcie_generation=5, pcie_width=16, pcie_replays=7,
        ecc_volatile_corrected=1, ecc_volatile_uncorrected=2, ecc_aggregate_corrected=3, ecc_aggregate_uncorrected=4,
        rows_corrected=1, rows_uncorrected=2, rows_pending=True, rows_failed=False,
    )  # fmt: skip


@needs("gcc")
def test_a_gpu_that_supports_nothing_tells_nothing_and_is_not_ill(gpus: NvmlGpus, own_nvml: FakeNvml) -> None:
    for key in [line.split(" ")[2] for line in own_nvml.path.read_text().splitlines() if line.startswith("gpu 0 ")]:
        if key not in {"uuid", "name"}:
            own_nvml.set(0, {key: None})
    (first, *_), (meters, *_) = read(NvmlGpus())
    assert first.healthy
    assert first.memory_mib is None
    assert set(first.facts.values()) == {None}
    assert {getattr(meters, one.name) for one in fields(meters) if one.name not in UNTOLD} == {None}


@needs("gcc")
@pytest.mark.parametrize("code", [RESET_REQUIRED, 15, 999])
def test_an_error_that_is_no_answer_makes_a_gpu_ill_and_no_value_zero(
    gpus: NvmlGpus, own_nvml: FakeNvml, code: int
) -> None:
    own_nvml.set(0, energy_mj=Failure(code))
    (first, second, *_), (meters, *_) = read(gpus)
    assert (first.healthy, second.healthy) == (False, True)
    assert meters.millijoules is None
    assert meters.power_mw == 75_000


@needs("gcc")
def test_a_lost_gpu_stays_at_its_index_as_not_healthy_and_comes_back(gpus: NvmlGpus, own_nvml: FakeNvml) -> None:
    before = read(gpus)[0]
    own_nvml.lose(3)
    found = {gpu.uuid: gpu for gpu in read(gpus)[0]}
    assert {gpu.uuid: gpu.index for gpu in before} == {name: gpu.index for name, gpu in found.items()}
    assert [gpu.uuid for gpu in found.values() if not gpu.healthy] == [own_nvml.uuid(3)]
    assert found[own_nvml.uuid(3)].facts == before[3].facts
    own_nvml.heal(3)
    assert all(gpu.healthy for gpu in read(gpus)[0])


@needs("gcc")
def test_two_gpus_never_claim_one_index(gpus: NvmlGpus, own_nvml: FakeNvml) -> None:
    names = [gpu.uuid for gpu in read(gpus)[0]]
    own_nvml.take_out(6)
    own_nvml.take_out(0)
    found = read(gpus)[0]
    assert [gpu.uuid for gpu in found if gpu.healthy] == [*names[1:6], names[7]]
    assert sorted(gpu.index for gpu in found) == list(range(8))


@needs("gcc")
def test_a_gpu_that_does_not_tell_its_name_is_not_there(gpus: NvmlGpus, own_nvml: FakeNvml) -> None:
    own_nvml.set(0, name=None)
    assert own_nvml.uuid(0) not in [gpu.uuid for gpu in read(gpus)[0]]


@needs("gcc")
def test_links_are_told_once_for_each_pair_and_nothing_is_invented(own_nvml: FakeNvml) -> None:
    own_nvml.pair(0, 1, "p2p.2", 5)
    own_nvml.pair(0, 5, "p2p.2", None)
    own_nvml.pair(6, 7, "p2p.2", None)
    own_nvml.pair(6, 7, "topology", None)
    source = NvmlGpus()
    read(source)
    names = [own_nvml.uuid(number) for number in range(8)]
    links = {(link.a, link.b): link.kind for link in source.links()}
    assert len(links) == 27
    assert links[names[0], names[1]] == "phb"
    assert links[names[0], names[5]] == "sys"
    assert links[names[2], names[3]] == "nvlink"
    assert (names[6], names[7]) not in links


@needs("gcc")
def test_a_broken_link_and_the_parts_of_a_cut_gpu_are_facts(own_nvml: FakeNvml) -> None:
    own_nvml.set(0, {"nvlink.3": (0, ""), "mig_mode": (1, 1), "mig_max": 7})
    own_nvml.set("0.1", uuid="MIG-a")
    own_nvml.set("0.4", uuid="MIG-b")
    facts = read(NvmlGpus())[0][0].facts
    assert (facts["nvlinks"], facts["nvlinks_up"], facts["nvlinks_down"]) == (18, 17, "3")
    assert facts["nvlinks_active"] == " ".join(str(link) for link in range(18) if link != 3)
    assert (facts["mig"], facts["mig_devices"]) == (True, "MIG-a MIG-b")


@needs("gcc")
def test_a_driver_that_goes_and_comes_again_makes_all_ill_meanwhile(gpus: NvmlGpus, own_nvml: FakeNvml) -> None:
    read(gpus)
    own_nvml.driver(error=DRIVER_NOT_LOADED)
    found = read(gpus)[0]
    assert len(found) == 8
    assert not any(gpu.healthy for gpu in found)
    own_nvml.reload_driver(version="590.1")
    assert all(gpu.healthy for gpu in read(gpus)[0])
    assert gpus.driver == "590.1"
    assert gpus.loads == 1


@needs("gcc")
def test_a_driver_older_than_a_question_answers_the_others(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    old = compile_library(tmp_path, without=["nvmlDeviceGetTemperature", "nvmlDeviceGetFieldValues"])
    program = """if True:
        from provisioning.agent.nvml import NvmlGpus
        (gpu, reading), *_ = NvmlGpus().read(busy=frozenset())
        print(gpu.healthy, reading.temperature_c, reading.memory_temperature_c, reading.power_mw)
    """
    said = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | fake_nvml.environment(old), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert said.stdout.split() == ["True", "None", "None", "75000"]


def test_without_the_library_the_agent_says_what_to_do(tmp_path: Path) -> None:
    program = "from provisioning.agent.main import run; run()"
    (tmp_path / "token").write_text("t")
    said = subprocess.run(
        [sys.executable, "-c", program, "--url", "http://127.0.0.1:9", "--home", str(tmp_path / "home"),
         "--join-token-file", str(tmp_path / "token")],
        env={name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 2
    assert "no NVIDIA driver answers" in said.stderr
    assert "simulated:H200:8:144384" in said.stderr


def test_reasons_are_words_and_a_new_one_is_named_by_its_bit() -> None:
    assert in_words(0) == ()
    assert in_words(1 | 8 | 4096) == ("idle", "hw_slowdown", "bit_4096")


@needs("gcc")
def test_a_driver_that_does_not_answer_at_first_is_waited_for_where_the_node_is_known(own_nvml: FakeNvml) -> None:
    own_nvml.driver(error=LIBRARY_MISMATCH)
    with pytest.raises(GpuSourceError):
        NvmlGpus()
    gpus = NvmlGpus(is_patient=True)
    assert read(gpus) == ([], [])
    own_nvml.driver()
    assert len(read(gpus)[0]) == 8


@needs("gcc")
def test_a_reload_that_is_seen_begins_a_driver_epoch_even_where_counters_have_passed_their_old_value(
    own_nvml: FakeNvml, tmp_path: Path
) -> None:
    kept = Home(tmp_path / "home")
    kept.begin_epoch()
    monitor = GpuMonitor(source=NvmlGpus(), home=kept, changed=lambda: None)
    epoch = kept.driver_epoch()
    own_nvml.driver(error=DRIVER_NOT_LOADED)
    monitor.look()
    own_nvml.reload_driver()
    own_nvml.set(0, energy_mj=10**9)
    monitor.look()
    assert kept.driver_epoch() == epoch + 1
    assert [one["driver_epoch"] for one in monitor.take_meters(busy=frozenset())[0]] == [epoch + 1] * 8
    kept.close()


def test_what_is_simulated_says_so_and_tells_as_much_as_a_real_gpu(tmp_path: Path) -> None:
    source = SimulatedGpus(model="H200", count=2, memory_mib=1000, seed="s", home=tmp_path)
    (gpu, meters), (other, _) = source.read(busy=frozenset())
    assert gpu.facts["simulated"] is True
    assert gpu.facts["serial"].startswith("SIM")
    assert source.links() == (Link(gpu.uuid, other.uuid, "nvlink"),)
    assert None not in [getattr(meters, one.name) for one in fields(meters)]


def test_a_simulated_board_in_a_pcie_slot_draws_less_and_has_no_nvlink(tmp_path: Path) -> None:
    source = SimulatedGpus(model="L40S", count=2, memory_mib=1000, seed="s", home=tmp_path)
    (gpu, _), (other, _) = source.read(busy=frozenset())
    assert source.links() == (Link(gpu.uuid, other.uuid, "node"),)
    (_, busy), _ = source.read(busy=frozenset({gpu.uuid}))
    assert busy.power_mw is not None
    assert busy.power_mw <= gpu.facts["power_limit_mw"] == 350_000
    assert gpu.facts["nvlinks"] is None


class StubGpus:
    """A source that says what the test wants."""

    name = "nvml"
    driver = "1"
    loads = 0

    def __init__(self) -> None:
        self.energy = 1000
        self.healthy = True

    def read(self, *, busy):
        return [(Gpu("GPU-1", 0, "H200", 143771, self.healthy), Reading("GPU-1", millijoules=self.energy))]

    def links(self):
        return ()


@pytest.fixture
def stub():
    return StubGpus()


@pytest.fixture
def monitor(stub, tmp_path):
    kept = Home(tmp_path / "home")
    kept.begin_epoch()
    yield GpuMonitor(source=stub, home=kept, changed=lambda: None)
    kept.close()


def test_the_inventory_generation_grows_with_each_change_and_only_then(monitor, stub):
    assert monitor.inventory().generation == 1
    monitor.look()
    assert monitor.inventory().generation == 1
    stub.healthy = False
    monitor.look()
    assert monitor.inventory().generation == 2


def test_meters_are_given_once(monitor):
    assert monitor.take_meters(busy=frozenset())[0] == [{"uuid": "GPU-1", "millijoules": 1000, "driver_epoch": 1}]
    assert monitor.take_meters(busy=frozenset()) == ([], [])


def test_an_energy_counter_that_falls_begins_a_new_driver_epoch(monitor, stub):
    for energy, epoch in ((2000, 1), (500, 2), (600, 2)):
        stub.energy = energy
        monitor.look()
        assert monitor.take_meters(busy=frozenset())[0][0]["driver_epoch"] == epoch


def test_gpus_of_a_driver_that_no_longer_answers_are_not_healthy(monitor, monkeypatch):
    assert monitor.inventory().gpus[0].healthy
    monkeypatch.setattr(monitor, "SILENT_AFTER_S", -1)
    assert not monitor.inventory().gpus[0].healthy
    monitor.look()
    monkeypatch.undo()
    assert monitor.inventory().gpus[0].healthy


@pytest.mark.parametrize(
    "text",
    ["", "simulated", "simulated:H200", "simulated:H200:0:1", "simulated:H200:x:1", "simulated::1:1", "real:H200:1:1"],
)
def test_a_source_that_does_not_exist_is_refused_with_an_example(tmp_path, text):
    with pytest.raises(GpuSourceError, match="simulated:H200:8:144384"):
        open_source(text, seed="s", home=tmp_path)


def test_simulated_work_costs_energy(tmp_path):
    source = open_source("simulated:H200:2:1000", seed="s", home=tmp_path)
    names = [gpu.uuid for gpu, _ in source.read(busy=frozenset())]
    source._read_at -= 10
    (_, busy), (_, idle) = source.read(busy=frozenset(names[:1]))
    assert busy.millijoules > 4 * idle.millijoules > 0
    assert busy.utilization_percent > 80
    assert idle.utilization_percent == 0
