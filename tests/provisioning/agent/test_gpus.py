"""GPU sources keep one promise: a value that is not there is None, a GPU that does not answer is not healthy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from provisioning.agent.gpus import Gpu, GpuSourceError, Reading, open_source
from provisioning.agent.monitor import GpuMonitor
from provisioning.agent.state import Home

# Reads its state from a file, so that a test can lose a GPU while somebody looks. One line per GPU:
# "error energy name", where error is what every question about that GPU is answered with and energy -1 means: no meter,
# -2: the GPU is lost when it is asked for that alone.
FAKE_NVML = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int errors[8], count; static long long energies[8]; static char names[8][8];
static void look(void) {
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    count = 0;
    while (file && fscanf(file, "%d %lld %7s", &errors[count], &energies[count], names[count]) == 3) count++;
    if (file) fclose(file);
}
static int at(void *device) { look(); return (int)(long)device - 1; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *found) { look(); *found = count; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(long)(index + 1); return 0; }
int nvmlDeviceGetUUID(void *device, char *text, unsigned length) {
    int n = at(device); snprintf(text, length, "GPU-fake-%s", names[n]); return errors[n]; }
int nvmlDeviceGetName(void *device, char *text, unsigned length) {
    int n = at(device); snprintf(text, length, "NVIDIA H200"); return errors[n]; }
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {
    int n = at(device); memory[0] = 143771ULL << 20; memory[2] = 512ULL << 20; return errors[n]; }
int nvmlDeviceGetUtilizationRates(void *device, unsigned *use) { use[0] = 87; use[1] = 3; return errors[at(device)]; }
int nvmlDeviceGetPowerUsage(void *device, unsigned *power) { *power = 512345; return errors[at(device)]; }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy) {
    int n = at(device); *energy = energies[n]; return energies[n] == -1 ? 3 : energies[n] == -2 ? 15 : errors[n]; }
const char *nvmlErrorString(int error) { return "fake"; }
"""  # nvmlDeviceGetTemperature is missing on purpose, as in a driver older than its question.

READ = """
import json, sys
from dataclasses import asdict
from provisioning.agent.gpus import NvmlGpus
source = NvmlGpus()
for line in sys.stdin:
    print(json.dumps([[asdict(gpu), asdict(reading)] for gpu, reading in source.read(busy=frozenset())]), flush=True)
"""


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc to build a stand-in for NVIDIA's library (apt-get install gcc)")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(FAKE_NVML)
    library = folder / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(folder / "nvml.c")], check=True)
    return folder


class NvmlReader:
    """Our NVML source in a process that finds the stand-in, because a process loads such a library only once."""

    def __init__(self, folder: Path, state: Path) -> None:
        env = os.environ | {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML": str(state)}
        self.state = state
        self.process = subprocess.Popen(
            [sys.executable, "-c", READ], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self, *gpus: str) -> list[tuple[Gpu, Reading]]:
        """Return what the source says while the machine has these GPUs."""
        self.state.write_text("\n".join(gpus) + "\n")
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return [(Gpu(**gpu), Reading(**reading)) for gpu, reading in json.loads(self.process.stdout.readline())]


@pytest.fixture
def nvml(nvml_folder, tmp_path):
    reader = NvmlReader(nvml_folder, tmp_path / "state")
    yield reader
    reader.process.communicate()


def test_nvml_values_are_read_and_a_missing_meter_is_none(nvml):
    (first, meters), (second, fewer) = nvml.read("0 1000 a", "0 -1 b")
    assert first == Gpu("GPU-fake-a", 0, "H200", 143771, healthy=True)
    assert meters == Reading("GPU-fake-a", 87, 512, 512345, None, 1000)
    assert second.healthy
    assert fewer.millijoules is None


@pytest.mark.parametrize("error", [15, 999])
def test_a_gpu_that_was_here_and_answers_with_an_error_is_not_healthy(nvml, error):
    nvml.read("0 1000 a", "0 1000 b")
    (first, _), (second, meters) = nvml.read("0 1001 a", f"{error} 1000 b")
    assert first.healthy
    assert second == Gpu("GPU-fake-b", 1, "H200", 143771, healthy=False)
    assert meters == Reading("GPU-fake-b")


def test_a_gpu_that_fell_off_the_bus_stays_in_the_inventory_as_not_healthy(nvml):
    nvml.read("0 1 a", "0 1 b", "0 1 c")
    found = [gpu for gpu, _ in nvml.read("0 1 a", "0 1 b")]
    assert [(gpu.uuid, gpu.index, gpu.healthy) for gpu in found] == [
        ("GPU-fake-a", 0, True),
        ("GPU-fake-b", 1, True),
        ("GPU-fake-c", 2, False),
    ]
    assert [gpu.healthy for gpu, _ in nvml.read("0 1 a", "0 1 b", "0 1 c")] == [True, True, True]


def test_two_gpus_never_claim_one_index(nvml):
    nvml.read("0 1 a", "0 1 b", "0 1 c")
    found = [gpu for gpu, _ in nvml.read("0 1 b", "0 1 c")]
    assert [(gpu.uuid, gpu.index, gpu.healthy) for gpu in found] == [
        ("GPU-fake-b", 0, True),
        ("GPU-fake-c", 1, True),
        ("GPU-fake-a", 2, False),
    ]


def test_a_meter_that_a_gpu_does_not_support_is_neither_illness_nor_zero(nvml):
    ((gpu, meters),) = nvml.read("0 -1 a")
    assert gpu.healthy
    assert meters.millijoules is None


def test_a_gpu_that_is_lost_while_it_is_asked_is_not_healthy(nvml):
    ((gpu, _),) = nvml.read("0 -2 a")
    assert gpu == Gpu("GPU-fake-a", 0, "H200", 143771, healthy=False)


def test_a_gpu_that_does_not_tell_its_name_is_not_there(nvml):
    assert nvml.read("3 1 a") == []


class StubGpus:
    """A source that says what the test wants."""

    name = "nvml"

    def __init__(self) -> None:
        self.energy = 1000
        self.healthy = True

    def read(self, *, busy):
        return [(Gpu("GPU-1", 0, "H200", 143771, self.healthy), Reading("GPU-1", millijoules=self.energy))]


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
