"""NVIDIA's own programs, as operations use them: nvidia-smi resets a GPU, DCGM fills its memory and reads it back."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from provisioning.agent.clock import boottime

SUCCEEDED, FAILED, UNKNOWN = "succeeded", "failed", "unknown"
NONE_AVAILABLE = "none available"
NOBODY = "none"  # The name of no program: an operator wants none.


@dataclass(frozen=True)
class End:
    """How an operation ended."""

    result: str
    message: str = ""


class Tools(Protocol):
    """What can be done to GPUs of a kind."""

    def reset(self, gpu: str) -> End:
        """Reset one GPU."""

    def test_memory(self, gpus: Sequence[str]) -> End:
        """Fill the memory of GPUs that nobody uses and read it back; the message says how, or that nothing can."""


class SimulatedTools:
    """Repairs what does not exist, and says so. A GPU that seems lost stays lost."""

    def reset(self, gpu: str) -> End:
        """Pretend."""
        return End(SUCCEEDED, "simulated")

    def test_memory(self, gpus: Sequence[str]) -> End:
        """Pretend."""
        return End(SUCCEEDED, "simulated")


class NvmlTools:
    """Repairs and tests real GPUs with NVIDIA's own programs."""

    RESET_LIMIT_S = 120.0
    TEST_LIMIT_S = 180.0  # Other operations of the node wait meanwhile, and the control plane for them.

    def __init__(self, *, smi: str = "nvidia-smi", dcgmi: str | None = None) -> None:
        self._smi = smi
        self._dcgmi = shutil.which(dcgmi or "dcgmi") if dcgmi != NOBODY else None

    def reset(self, gpu: str) -> End:
        """Reset it through nvidia-smi; what takes too long may or may not have happened."""
        program = shutil.which(self._smi)
        if program is None:
            return End(FAILED, f"{self._smi} is not on this node")
        return call([program, "--gpu-reset", "-i", gpu], limit_s=self.RESET_LIMIT_S)

    def test_memory(self, gpus: Sequence[str]) -> End:
        """Run DCGM's test named memory; without DCGM there is none. What does not end in time has failed."""
        if self._dcgmi is None:
            return End(SUCCEEDED, NONE_AVAILABLE)
        ends_at = boottime() + self.TEST_LIMIT_S
        listed = run([self._dcgmi, "discovery", "-l"], limit_s=self.TEST_LIMIT_S)
        if listed.end.result != SUCCEEDED:
            return End(FAILED, f"dcgmi: {listed.end.message}")
        numbers = dcgm_numbers(listed.output)
        if missing := [gpu for gpu in gpus if gpu not in numbers]:
            return End(FAILED, f"dcgmi does not know {', '.join(missing)}")
        chosen = ",".join(numbers[gpu] for gpu in gpus)
        command = [self._dcgmi, "diag", "-r", "memory", "-i", chosen, "-j"]
        done = run(command, limit_s=max(1.0, ends_at - boottime()))
        return judged(done)


@dataclass(frozen=True)
class Run:
    """How a program ended, and what it wrote."""

    end: End
    output: str = ""


def run(command: Sequence[str], *, limit_s: float) -> Run:
    """Run a program of the operator's; what it still does after the limit nobody knows."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Run(End(UNKNOWN, f"{command[0]} did not end within {limit_s:.0f} s"))
    except OSError as error:
        return Run(End(FAILED, f"{command[0]} cannot be run: {error.strerror}"))
    words = (done.stderr or done.stdout).strip().splitlines()
    if done.returncode:
        return Run(End(FAILED, words[-1] if words else f"{command[0]} ended with {done.returncode}"), done.stdout)
    return Run(End(SUCCEEDED, words[-1] if words else ""), done.stdout)


def call(command: Sequence[str], *, limit_s: float) -> End:
    """Run a program of the operator's and say how it ended."""
    return run(command, limit_s=limit_s).end


def dcgm_numbers(listing: str) -> dict[str, str]:
    """Return DCGM's own number of each GPU by UUID, as `dcgmi discovery -l` lists them."""
    found, number = {}, ""
    for line in listing.splitlines():
        if head := re.match(r"\|\s*(\d+)\s*\|", line):
            number = head[1]
        if name := re.search(r"Device UUID:\s*(GPU-[0-9a-fA-F-]+)", line):
            found[name[1]] = number
    return found


def judged(done: Run) -> End:
    """Return what DCGM's results mean: one that failed fails, and a test that was left out proves nothing."""
    if done.end.result == UNKNOWN:
        return End(FAILED, f"the memory test: {done.end.message}")
    try:
        results = list(results_of(json.loads(done.output[done.output.index("{") :])))
    except ValueError:
        results = []
    if bad := [(test, words) for test, status, words in results if status == "fail"]:
        return End(FAILED, "; ".join(f"the test {test!r} failed: {words}" for test, words in bad))
    if done.end.result != SUCCEEDED:
        return End(FAILED, f"the memory test: {done.end.message}")
    of_memory = {status for test, status, _ in results if "memory" in test.lower()}
    if of_memory == {"pass"}:
        return End(SUCCEEDED, "dcgmi diag memory passed")
    return End(SUCCEEDED, f"cannot tell: dcgmi diag memory says {', '.join(sorted(of_memory)) or 'nothing'}")


def results_of(value: Any, *, test: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (test, status, words) of all in DCGM's JSON that has a status; its versions nest them differently."""
    if isinstance(value, Mapping):
        test = str(value.get("name", test))
        if isinstance(value.get("status"), str):
            said = json.dumps(value.get("warnings") or value.get("info") or "")
            yield test, value["status"].lower(), said[:200]
        for inner in value.values():
            yield from results_of(inner, test=test)
    elif isinstance(value, list):
        for inner in value:
            yield from results_of(inner, test=test)
