"""Operations: done once under one id, whatever happens to the agent meanwhile."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provisioning.agent import operations
from provisioning.agent.cleaning import SimulatedCleaner
from provisioning.agent.conditions import Condition, faults_of
from provisioning.agent.operations import Operations
from provisioning.agent.protocol import Operation
from provisioning.agent.tools import End, NvmlTools, call
from provisioning.agent.wiping import Wiper
from tests.provisioning.agent.test_health import Notes

GPU = "GPU-a"
WELL = Condition(
    recovery=0, uncorrected=0, sram_exceeded=False, remap_pending=False, remap_failed=False,
    links={0: True, 1: True}, fabric="", is_pcie_narrow=False,
)  # fmt: skip
LINKED: dict[str, tuple[int, ...]] = {GPU: (0, 1), "GPU-b": (0, 1)}


class Killed(BaseException):
    """The agent ends here, as if by SIGKILL."""


class Bench:
    """An agent's operations without its threads; `restart` forgets all that is only in memory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.notes = Notes()
        self.wanted: list[Operation] = []
        self.resets: list[str] = []
        self.reset_end: End | BaseException = End("succeeded")
        self.conditions = {GPU: WELL, "GPU-b": WELL}
        self.tested: list[list[str]] = []
        self.test_end = End("succeeded", "none available")
        self.worn_by_test: dict[str, Condition] = {}
        self.busy: frozenset[str] = frozenset()
        self.reboot_command = ""
        self.restart()

    def restart(self) -> None:
        wiper = Wiper(home=self.home, journal=self.notes, cleaner=SimulatedCleaner(), excused=lambda gpu: nullcontext())
        self.operations = Operations(
            home=self.home,
            journal=self.notes,
            wanted=lambda: self.wanted,
            gpus=lambda: [GPU, "GPU-b"],
            busy=lambda: self.busy,
            tools=self,
            condition=self.condition,
            wiper=wiper,
            excused=lambda gpu: nullcontext(),
            reboot_command=self.reboot_command,
        )

    def condition(self, gpu: str) -> Condition | None:
        return self.conditions.get(gpu)

    def reset(self, gpu: str) -> End:
        self.resets.append(gpu)
        if isinstance(self.reset_end, BaseException):
            raise self.reset_end
        return self.reset_end

    def test_memory(self, gpus: Sequence[str]) -> End:
        self.tested.append(list(gpus))
        self.conditions |= self.worn_by_test
        return self.test_end

    def ask(
        self, kind: str, *, gpu: str = GPU, name: str = "opr_a", links: dict[str, tuple[int, ...]] = LINKED
    ) -> None:
        self.wanted = [Operation(id=name, kind=kind, gpu=gpu, attempt=1, links=links)]
        self.operations.step()

    @property
    def ends(self) -> list[tuple[str, str]]:
        told = [body for kind, body in zip(self.notes.kinds, self.notes.bodies, strict=True) if kind == "operation"]
        return [(body["result"], body["message"]) for body in told]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_an_operation_is_done_and_told_once_for_as_long_as_it_is_asked_for(bench: Bench) -> None:
    for _ in range(3):
        bench.ask("reset_gpu")
    assert (bench.resets, bench.ends) == ([GPU], [("succeeded", "")])


def test_one_that_is_asked_for_again_gets_its_stored_end_and_is_not_done_again(bench: Bench) -> None:
    bench.reset_end = End("failed", "no")
    bench.ask("reset_gpu")
    bench.wanted = []
    bench.operations.step()
    bench.ask("reset_gpu")
    bench.restart()
    bench.ask("reset_gpu")
    assert (bench.resets, bench.ends) == ([GPU], [("failed", "no")] * 3)


def test_a_reset_that_was_cut_short_is_unknown_for_ever(bench: Bench) -> None:
    bench.reset_end = Killed()
    with pytest.raises(Killed):
        bench.ask("reset_gpu")
    bench.reset_end = End("succeeded")
    for _ in range(2):
        bench.restart()
        bench.ask("reset_gpu")
    assert bench.resets == [GPU]
    assert {result for result, _ in bench.ends} == {"unknown"}


def test_an_end_that_could_not_be_told_is_told_by_the_next_agent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(bench.notes, "append", die)
        with pytest.raises(Killed):
            bench.ask("reset_gpu")
    bench.restart()
    bench.ask("reset_gpu")
    assert (bench.resets, bench.ends) == ([GPU], [("succeeded", "")])


@pytest.mark.parametrize("kind", ["wipe", "verify"])
def test_a_wipe_or_a_check_that_was_cut_short_is_begun_again(
    kind: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as dying:
        dying.setattr(bench.operations, "_keep", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            bench.ask(kind)
    bench.restart()
    bench.ask(kind)
    assert [result for result, _ in bench.ends] == ["succeeded"]


def test_another_boot_proves_a_restart(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.reboot_command = "/bin/true"
    bench.restart()
    bench.operations._stopping.set()  # The machine goes down, and the agent with it.
    bench.ask("reboot_node", gpu="")
    assert bench.ends == []
    monkeypatch.setattr(operations, "boot_id", lambda: "another boot")
    bench.restart()
    bench.ask("reboot_node", gpu="")
    assert bench.ends == [("succeeded", "the machine has started anew")]


def test_without_another_boot_nobody_knows(bench: Bench) -> None:
    bench.reboot_command = "/bin/true"
    bench.restart()
    bench.operations._stopping.set()
    bench.ask("reboot_node", gpu="")
    bench.restart()
    bench.ask("reboot_node", gpu="")
    assert [result for result, _ in bench.ends] == ["unknown"]


def test_an_agent_restarts_its_machine_only_where_it_was_told_how(bench: Bench) -> None:
    bench.ask("reboot_node", gpu="")
    assert bench.ends[0][0] == "failed"
    assert "--reboot-command" in bench.ends[0][1]


def test_a_reboot_command_that_fails_says_why(bench: Bench) -> None:
    bench.reboot_command = "sh -c 'echo not allowed >&2; exit 3'"
    bench.restart()
    bench.ask("reboot_node", gpu="")
    assert bench.ends == [("failed", "not allowed")]


@pytest.mark.parametrize("kind", ["reset_gpu", "wipe", "reboot_node", "verify"])
def test_nothing_is_done_under_a_workload(kind: str, bench: Bench) -> None:
    bench.busy = frozenset({GPU})
    bench.ask(kind)
    assert bench.ends[0][0] == "failed"
    assert (bench.resets, bench.tested) == ([], [])


def test_a_wipe_leaves_its_record_before_its_end(bench: Bench) -> None:
    bench.ask("wipe")
    assert bench.notes.kinds == ["wipe", "operation"]
    record = bench.notes.bodies[0]
    assert (record["operation"], record["method"], record["result"]) == ("opr_a", "simulated", "ok")


def test_a_check_names_every_fault_of_every_gpu(bench: Bench) -> None:
    hot = replace(WELL, is_hot=True)
    bench.conditions = {GPU: hot, "GPU-b": replace(hot, links={0: True, 1: False})}
    bench.ask("verify", gpu="")
    assert bench.ends == [("failed", "GPU-a: it is too hot; GPU-b: NVLink 1 is not active; GPU-b: it is too hot")]
    assert bench.tested == [], "what is broken is not filled"


def test_a_check_tests_the_memory_of_all_its_gpus_and_says_how(bench: Bench) -> None:
    bench.ask("verify", gpu="")
    assert bench.tested == [[GPU, "GPU-b"]]
    assert bench.ends == [("succeeded", "2 GPUs are well; memory test: none available")]


def test_a_memory_that_fails_its_test_keeps_the_gate_shut(bench: Bench) -> None:
    bench.test_end = End("failed", "the test 'memory' failed: mismatch")
    bench.ask("verify")
    assert bench.ends == [("failed", "the test 'memory' failed: mismatch")]


def test_what_the_memory_test_does_to_a_gpu_counts_though_the_test_passed(bench: Bench) -> None:
    bench.worn_by_test = {GPU: replace(WELL, uncorrected=2)}
    bench.test_end = End("succeeded", "dcgmi diag memory passed")
    bench.ask("verify")
    assert bench.ends == [("failed", "after the test of its memory: GPU-a: 2 memory errors are uncorrected")]


@pytest.mark.parametrize(
    ("links", "end"),
    [
        ({0: True, 1: True}, ("succeeded", "1 GPU is well; memory test: none available")),
        ({0: True, 1: False}, ("failed", "GPU-a: NVLink 1 is not active")),
        ({0: True}, ("failed", "GPU-a: NVLink 1 is not active")),
        ({0: False, 1: False}, ("failed", "GPU-a: NVLink 0, 1 is not active")),
        (
            {0: True, 1: None},
            ("succeeded", "1 GPU is well; memory test: none available; cannot tell: NVLink 1 of GPU-a"),
        ),
        (None, ("succeeded", "1 GPU is well; memory test: none available; cannot tell: NVLink 0, 1 of GPU-a")),
        ({0: True, 1: True, 2: False}, ("succeeded", "1 GPU is well; memory test: none available")),
    ],
)
def test_links_are_compared_with_those_that_the_gpu_was_accepted_with(
    links: dict[int, bool | None] | None, end: tuple[str, str], bench: Bench
) -> None:
    bench.conditions = {GPU: replace(WELL, links=links)}
    bench.ask("verify")
    assert bench.ends == [end]


def test_without_anything_to_compare_with_a_gpu_that_lost_some_links_fails_and_one_without_any_passes(
    bench: Bench,
) -> None:
    bench.conditions = {GPU: replace(WELL, links={0: True, 1: False})}
    bench.ask("verify", links={})
    bench.conditions = {GPU: replace(WELL, links={0: False, 1: False})}
    bench.ask("verify", name="opr_b", links={})
    bench.conditions = {GPU: replace(WELL, links=None), "GPU-b": replace(WELL, links=None, uncorrected=None)}
    bench.ask("verify", name="opr_c", gpu="", links={})
    assert [result for result, _ in bench.ends] == ["failed", "succeeded", "succeeded"]
    assert bench.ends[2][1].endswith("cannot tell: NVLinks of 2 GPUs, memory errors of GPU-b")


def test_without_its_tool_a_reset_fails_and_says_so() -> None:
    end = NvmlTools(smi="no-such-program").reset(GPU)
    assert end == End("failed", "no-such-program is not on this node")


def test_a_tool_is_called_with_the_gpu(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    assert NvmlTools(smi=str(tool)).reset(GPU) == End("succeeded", "--gpu-reset -i GPU-a")


def test_a_tool_that_takes_too_long_may_or_may_not_have_done_it() -> None:
    assert call(["sleep", "5"], limit_s=0.1).result == "unknown"


@pytest.mark.parametrize(
    ("condition", "is_well"),
    [
        (None, False),
        (Condition(is_lost=True), False),
        (Condition(needs_reset=True), False),
        (Condition(recovery=1), False),
        (Condition(uncorrected=1), False),
        (Condition(remap_pending=True), False),
        (Condition(remap_failed=True), False),
        (Condition(sram_exceeded=True), False),
        (Condition(links={0: True, 1: False}), False),
        (Condition(fabric="its registration has not begun"), False),
        (Condition(is_pcie_narrow=True), False),
        (Condition(is_memory_hot=True), False),
        (WELL, True),
    ],
)
def test_what_keeps_a_gpu_from_passing(condition: Condition | None, is_well: bool) -> None:
    assert (not faults_of(condition)) is is_well
