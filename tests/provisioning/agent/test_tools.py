"""DCGM fills memory and reads it back: what it says counts, what it leaves out proves nothing, and it may be absent."""

import json
from pathlib import Path
from typing import Any

import pytest

from provisioning.agent.tools import NvmlTools

ONE, TWO = "GPU-0b5f4a6b-7a7a-6c41-0875-b8c8d963b0af", "GPU-34bf77d1-c686-6821-79a8-32d326c5039c"
LISTING = f"""\
2 GPUs found.
+--------+----------------------------------------------------------------------+
| GPU ID | Device Information                                                   |
+--------+----------------------------------------------------------------------+
| 4      | Name: NVIDIA H800                                                    |
|        | PCI Bus ID: 00000000:18:00.0                                         |
|        | Device UUID: {ONE}                |
+--------+----------------------------------------------------------------------+
| 5      | Name: NVIDIA H800                                                    |
|        | PCI Bus ID: 00000000:3E:00.0                                         |
|        | Device UUID: {TWO}                |
+--------+----------------------------------------------------------------------+
0 NvSwitches found.
"""


def of_version_3(*statuses: str, **more: Any) -> str:
    results = [{"gpu_id": str(number), "status": status, **more} for number, status in enumerate(statuses)]
    software = {"category": "Deployment", "tests": [{"name": "Denylist", "results": [{"status": "Pass"}]}]}
    hardware = {"category": "Hardware", "tests": [{"name": "GPU Memory", "results": results}]}
    return json.dumps({"DCGM GPU Diagnostic": {"version": "3.3.1", "test_categories": [software, hardware]}})


def of_version_4(*statuses: str) -> str:
    results = [{"entity_id": number, "status": status} for number, status in enumerate(statuses)]
    test = {"name": "memory", "results": results, "test_summary": {"status": statuses[-1]}}
    return json.dumps({"category": "Hardware", "tests": [test]})


class Dcgm:
    """A dcgmi that answers what the test says."""

    def __init__(self, folder: Path) -> None:
        self.calls, self._answer = folder / "calls", folder / "answer"
        self.program = folder / "dcgmi"
        (folder / "listing").write_text(LISTING)
        self.program.write_text(
            f'#!/bin/sh\necho "$@" >> {self.calls}\n'
            f'if [ "$1" = discovery ]; then cat {folder}/listing; exit 0; fi\n. {self._answer}\n'
        )
        self.program.chmod(0o755)
        self.says(of_version_3("Pass", "Pass"))

    def says(self, words: str, *, code: int = 0) -> None:
        self._answer.write_text(f"cat <<'END'\n{words}\nEND\nexit {code}\n")

    def sleeps(self) -> None:
        self._answer.write_text("exec sleep 30\n")

    @property
    def tools(self) -> NvmlTools:
        return NvmlTools(dcgmi=str(self.program))


@pytest.fixture
def dcgm(tmp_path: Path) -> Dcgm:
    return Dcgm(tmp_path)


def test_it_is_asked_for_the_memory_of_these_gpus_by_its_own_numbers(dcgm: Dcgm) -> None:
    end = dcgm.tools.test_memory([TWO, ONE])
    assert (end.result, end.message) == ("succeeded", "dcgmi diag memory passed")
    assert dcgm.calls.read_text().splitlines() == ["discovery -l", "diag -r memory -i 5,4 -j"]


@pytest.mark.parametrize(
    ("words", "code", "result", "message"),
    [
        (of_version_4("Pass", "Pass"), 0, "succeeded", "dcgmi diag memory passed"),
        ("Running...\n" + of_version_3("Pass"), 0, "succeeded", "dcgmi diag memory passed"),
        (of_version_3("Pass", "Fail", warnings=["DBE at 0x1"]), 1, "failed", "DBE at 0x1"),
        (of_version_4("Pass", "Fail"), 0, "failed", "'memory' failed"),
        (of_version_3("Skip", "Skip"), 0, "succeeded", "cannot tell: dcgmi diag memory says skip"),
        (of_version_3("Pass", "Skip"), 0, "succeeded", "cannot tell: dcgmi diag memory says pass, skip"),
        (of_version_3("Pass"), 1, "failed", "the memory test"),
        ("{}", 0, "succeeded", "cannot tell: dcgmi diag memory says nothing"),
        ("not JSON", 0, "succeeded", "cannot tell"),
        ("Error: unable to establish a connection", 255, "failed", "unable to establish a connection"),
    ],
)
def test_what_its_results_mean(words: str, code: int, result: str, message: str, dcgm: Dcgm) -> None:
    dcgm.says(words, code=code)
    end = dcgm.tools.test_memory([ONE])
    assert end.result == result
    assert message in end.message


def test_one_that_does_not_end_in_time_has_failed(dcgm: Dcgm) -> None:
    dcgm.sleeps()
    tools = dcgm.tools
    tools.TEST_LIMIT_S = 0.1
    end = tools.test_memory([ONE])
    assert end.result == "failed"
    assert "did not end within 1 s" in end.message


def test_a_gpu_that_it_does_not_know_is_not_passed_over(dcgm: Dcgm) -> None:
    end = dcgm.tools.test_memory([ONE, "GPU-elsewhere"])
    assert (end.result, end.message) == ("failed", "dcgmi does not know GPU-elsewhere")


@pytest.mark.parametrize("dcgmi", ["none", "no-such-program"])
def test_without_it_the_record_says_that_there_is_none(dcgmi: str) -> None:
    end = NvmlTools(dcgmi=dcgmi).test_memory([ONE])
    assert (end.result, end.message) == ("succeeded", "none available")
