"""Which device node is whose: told by NVML, else by the driver's files; never guessed, never refused for ignorance."""

from pathlib import Path

import pytest

from provisioning.agent.gpus import Gpu
from provisioning.agent.preparation import are_others, minor_of

INFORMATION = """\
Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 345
GPU UUID: \t {uuid}
Bus Type: \t PCIe
Bus Location: \t 0000:{bus}:00.0
Device Minor: \t {minor}
GPU Excluded:\t No
"""


def gpu(name: str, *, minor: int | None = None, bus: str | None = None) -> Gpu:
    return Gpu(name, 0, "H100", None, True, facts={"minor_number": minor, "pci_bus_id": bus})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The driver's own files of three GPUs; the last has not been used yet, so that nobody knows its name."""
    for bus, uuid, minor in (("17", "GPU-a", 4), ("1f", "GPU-b", 5), ("27", "GPU-????????-????", 6)):
        (tmp_path / f"0000:{bus}:00.0").mkdir()
        (tmp_path / f"0000:{bus}:00.0" / "information").write_text(INFORMATION.format(uuid=uuid, bus=bus, minor=minor))
    return tmp_path


def test_what_nvml_tells_counts_and_else_the_drivers_own_file(folder: Path) -> None:
    assert minor_of(gpu("GPU-a", minor=2), folder=folder) == 2
    assert minor_of(gpu("GPU-a"), folder=folder) == 4
    assert minor_of(gpu("GPU-c", bus="00000000:27:00.0"), folder=folder) == 6
    assert minor_of(gpu("GPU-c"), folder=folder) is None


def test_a_file_without_a_number_or_of_another_form_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "information").write_text("GPU UUID: GPU-a\nBus Location: nonsense\nDevice Minor: ?\n")
    assert minor_of(gpu("GPU-a", bus="00000000:17:00.0"), folder=tmp_path) is None


def test_others_are_told_apart_by_the_drivers_file(folder: Path) -> None:
    assert not are_others({4}, [gpu("GPU-a")], folder=folder)
    assert are_others({5}, [gpu("GPU-a")], folder=folder)


def test_where_nobody_knows_only_the_count_decides(tmp_path: Path) -> None:
    unknown = [gpu("GPU-a"), gpu("GPU-b")]
    assert not are_others({3, 7}, unknown, folder=tmp_path)
    assert are_others({3}, unknown, folder=tmp_path)
    assert are_others({1, 2, 3}, unknown, folder=tmp_path)
    assert are_others(set(), unknown, folder=tmp_path)
    assert are_others({3, 7}, [gpu("GPU-a", minor=2), gpu("GPU-b")], folder=tmp_path), (
        "the one that is known is not there"
    )
    assert not are_others(set(), [], folder=tmp_path)
