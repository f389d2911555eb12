"""The pretended NVML keeps NVIDIA's promises, as far as unmodified nvidia-ml-py can tell."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pynvml
import pytest

from tests.nvml import LOST, RECOVERY_ACTION, XID, Failure, FakeNvml, compile_library, has_compiler

pytestmark = pytest.mark.skipif(not has_compiler(), reason="needs the package gcc")


@pytest.fixture(autouse=True)
def _initialised(own_nvml: FakeNvml) -> None:
    pynvml.nvmlInit()


def handle(index: int = 0) -> object:
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def test_a_healthy_machine_tells_what_it_is(own_nvml: FakeNvml) -> None:
    assert pynvml.nvmlDeviceGetCount() == 8
    assert pynvml.nvmlSystemGetDriverVersion() == "580.95.05"
    assert [pynvml.nvmlDeviceGetUUID(handle(i)) for i in range(8)] == [own_nvml.uuid(i) for i in range(8)]
    assert pynvml.nvmlDeviceGetName(handle()) == "NVIDIA H200"
    assert pynvml.nvmlDeviceGetPciInfo(handle(1)).busId == "00000000:1F:00.0"
    assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(own_nvml.uuid(5))) == 5
    assert pynvml.nvmlDeviceGetMemoryInfo(handle()).total == 143_771 << 20
    assert pynvml.nvmlDeviceGetTopologyCommonAncestor(handle(0), handle(1)) == pynvml.NVML_TOPOLOGY_HOSTBRIDGE
    assert pynvml.nvmlDeviceGetP2PStatus(handle(7), handle(1), pynvml.NVML_P2P_CAPS_INDEX_NVLINK) == 0


def test_a_change_is_seen_at_the_next_call(own_nvml: FakeNvml) -> None:
    own_nvml.set(0, {"temperature.0": 71}, power_mw=412_000)
    assert pynvml.nvmlDeviceGetPowerUsage(handle()) == 412_000
    assert pynvml.nvmlDeviceGetTemperature(handle(), 0) == 71
    assert pynvml.nvmlDeviceGetTemperatureV(handle(), 0) == 71


def test_what_is_not_there_is_not_supported_and_a_question_can_fail_alone(own_nvml: FakeNvml) -> None:
    own_nvml.set(0, pcie_replay=None, energy_mj=Failure(4))
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetPcieReplayCounter(handle())
    with pytest.raises(pynvml.NVMLError_NoPermission):
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle())
    assert pynvml.nvmlDeviceGetPowerUsage(handle()) == 75_000


def test_fields_have_a_status_each(own_nvml: FakeNvml) -> None:
    own_nvml.set(0, {"field.230": 2})
    values = pynvml.nvmlDeviceGetFieldValues(handle(), [230, pynvml.NVML_FI_DEV_ENERGY, 999])
    assert [(one.nvmlReturn, one.value.ullVal) for one in values] == [(0, 2), (0, 1_000_000), (3, 0)]


def test_a_lost_gpu_answers_nothing_and_the_others_stay(own_nvml: FakeNvml) -> None:
    before = handle(3)
    own_nvml.lose(3)
    for question in (pynvml.nvmlDeviceGetUUID, pynvml.nvmlDeviceGetPowerUsage):
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            question(before)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        handle(3)
    assert pynvml.nvmlDeviceGetUUID(handle(4)) == own_nvml.uuid(4)


def test_a_gpu_that_was_taken_out_moves_the_others_up(own_nvml: FakeNvml) -> None:
    before, names = handle(3), [own_nvml.uuid(i) for i in range(8)]
    own_nvml.take_out(3)
    assert pynvml.nvmlDeviceGetCount() == 7
    assert pynvml.nvmlDeviceGetUUID(handle(3)) == names[4]
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetUUID(before)


def test_a_driver_that_is_gone_fails_every_call(own_nvml: FakeNvml) -> None:
    own_nvml.driver(error=9)
    with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        pynvml.nvmlDeviceGetCount()


def test_an_xid_arrives_while_somebody_waits(own_nvml: FakeNvml) -> None:
    events = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(handle(2), XID | RECOVERY_ACTION, events)
    threading.Timer(0.1, own_nvml.xid, (2, 79)).start()
    event = pynvml.nvmlEventSetWait_v2(events, 5000)
    assert (event.eventType, event.eventData) == (XID, 79)
    assert pynvml.nvmlDeviceGetUUID(event.device) == own_nvml.uuid(2)
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait_v2(events, 20)
    pynvml.nvmlEventSetFree(events)


def test_events_of_others_and_of_the_past_are_not_delivered(own_nvml: FakeNvml) -> None:
    own_nvml.xid(2, 13)
    events = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(handle(2), XID, events)
    own_nvml.xid(1, 31)
    own_nvml.event(2, RECOVERY_ACTION, 1)
    own_nvml.xid(2, 48)
    assert pynvml.nvmlEventSetWait_v2(events, 1000).eventData == 48
    own_nvml.set(2, error=LOST)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlEventSetWait_v2(events, 1000)
    pynvml.nvmlEventSetFree(events)


def test_processes_are_listed_with_their_memory(own_nvml: FakeNvml) -> None:
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle()) == []
    own_nvml.run_process(0, 4711, memory_bytes=5)
    own_nvml.run_process(0, 4712, memory_bytes=6)
    found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle())
    assert [(one.pid, one.usedGpuMemory) for one in found] == [(4711, 5), (4712, 6)]
    FakeNvml(own_nvml.path).end_process(0, 4711)
    assert [one.pid for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle())] == [4712]


def test_mig_devices_have_names_of_their_own(own_nvml: FakeNvml) -> None:
    own_nvml.set(0, mig_mode=(1, 1), mig_max=7)
    own_nvml.set("0.0", uuid="MIG-a", gpu_instance=3, compute_instance=0, memory_bytes=(5 << 30, 0, 0))
    device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle(), 0)
    assert pynvml.nvmlDeviceGetUUID(device) == "MIG-a"
    assert pynvml.nvmlDeviceGetGpuInstanceId(device) == 3
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle(), 1)


def test_energy_grows_by_itself_and_starts_anew_with_the_driver(own_nvml: FakeNvml) -> None:
    own_nvml.spend(0, milliwatts=500_000)
    began, first = time.monotonic(), pynvml.nvmlDeviceGetTotalEnergyConsumption(handle())
    time.sleep(0.05)
    spent = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle()) - first
    assert 20_000 < spent <= 500_000 * (time.monotonic() - began) + 1_000
    own_nvml.reload_driver()
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle()) == 0


def test_only_gpus_whose_node_is_in_the_container_are_seen(
    own_nvml: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dev").mkdir()
    for number in (2, 5):
        (tmp_path / "dev" / f"nvidia{number}").touch()
    monkeypatch.setenv("FAKE_NVML_DEV", str(tmp_path / "dev"))
    assert pynvml.nvmlDeviceGetCount() == 2
    assert [pynvml.nvmlDeviceGetUUID(handle(i)) for i in range(2)] == [own_nvml.uuid(2), own_nvml.uuid(5)]


def test_another_process_finds_it_and_a_function_can_be_missing(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    old = compile_library(tmp_path, without=["nvmlDeviceGetPcieReplayCounter"])
    program = """if True:
        import pynvml
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        try:
            pynvml.nvmlDeviceGetPcieReplayCounter(gpu)
        except pynvml.NVMLError_FunctionNotFound:
            print(pynvml.nvmlDeviceGetUUID(gpu))
    """
    said = subprocess.run(
        [sys.executable, "-c", program], env=fake_nvml.environment(old), capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == fake_nvml.uuid(0)


def test_the_measuring_command_compares_the_counter_with_the_power(fake_nvml: FakeNvml, nvml_library: Path) -> None:
    fake_nvml.spend(0, milliwatts=500_000)
    fake_nvml.set(1, pcie_replay=None)
    said = subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu", "--seconds", "1"],
        env=os.environ | fake_nvml.environment(nvml_library), capture_output=True, text=True, check=True,
    )  # fmt: skip
    last = json.loads(said.stdout.splitlines()[-1])
    figures = last.get("figures", last)
    energy = figures["energy"][fake_nvml.uuid(0)]
    assert abs(energy["difference_percent"]) < 25
    assert figures["energy"][fake_nvml.uuid(2)]["difference_percent"] is None
    assert "pcie_replays" in figures["gpus"][1]["not_told"]
