"""Fixtures of the pretended NVML; tests/conftest.py makes them known everywhere."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from tests.nvml import FakeNvml, compile_library, has_compiler


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled libnvidia-ml.so.1, for LD_LIBRARY_PATH of other processes."""
    if not has_compiler():
        pytest.skip("needs the package gcc")
    return compile_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake_nvml(tmp_path: Path) -> FakeNvml:
    """A machine of eight GPUs, for other processes: see FakeNvml.environment."""
    return FakeNvml.make(tmp_path / "nvml-state")


@pytest.fixture
def own_nvml(nvml_library: Path, fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """The same machine for pynvml in the process of the test itself."""
    # The loader finds a library by its name among those that are loaded already: LD_LIBRARY_PATH comes too late here.
    ctypes.CDLL(str(nvml_library))
    monkeypatch.setenv("FAKE_NVML_STATE", str(fake_nvml.path))
    yield fake_nvml
    if pynvml.nvmlLib is not None:
        fake_nvml.driver()
        pynvml.nvmlShutdown()
