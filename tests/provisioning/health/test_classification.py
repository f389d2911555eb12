"""What each event means: every row of the policy, and that NVIDIA's own verdict outranks the catalogue."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.agent.events import EVENT_CODES
from provisioning.health.classification import Seen, classify
from provisioning.health.rules import OPERATIONS, Action, Severity, current
from provisioning.node_files import FALSE_DIGEST

# What agents tell without a number: provisioning/agent/{events,conditions,health}.py.
CODES_OF_AGENTS = {
    *("lost", "reset_required", "ecc_dbe", "sram_threshold", "row_remap_pending", "row_remap_failed", "fabric"),
    *("nvlink", "thermal", "memory_thermal", "power_brake", "pcie", "driver", "host"),
    *({*EVENT_CODES.values()} - {"xid", "recovery"}),
}
# What the control plane itself sees: provisioning/node_files.py.
CODES_OF_OURS = {FALSE_DIGEST}
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
TABLE = current()
GPU = "GPU-a"

# code, detail, action, scope, rule
POLICY = [
    ("recovery:0", "", "record", "gpu", "verdict-none"),
    ("recovery:1", "", "reset_gpu", "gpu", "verdict-gpu-reset"),
    ("recovery:2", "", "reboot_node", "node", "verdict-node-reboot"),
    ("recovery:3", "", "reset_gpu", "node", "verdict-drain-peers"),
    ("recovery:4", "", "reset_gpu", "gpu", "verdict-drain-and-reset"),
    ("recovery:5", "", "degrade", "node", "verdict-recover-fabric"),
    ("recovery:6", "", "reboot_node", "node", "verdict-node-reboot"),
    ("recovery:7", "", "reboot_node", "node", "verdict-node-reboot"),
    (
        "xid:154",
        "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
        "reboot_node",
        "node",
        "verdict-node-reboot",
    ),
    ("lost", "", "reboot_node", "node", "lost"),
    ("xid:79", "GPU has fallen off the bus.", "reboot_node", "node", "lost"),
    ("reset_required", "", "reset_gpu", "gpu", "reset-required"),
    ("xid:95", "", "reset_gpu", "gpu", "uncontained-memory"),
    ("xid:140", "", "reset_gpu", "gpu", "uncontained-memory"),
    ("xid:171", "", "reset_gpu", "gpu", "uncontained-memory"),
    ("xid:172", "", "reset_gpu", "gpu", "uncontained-memory"),
    ("fatal_poison", "", "reset_gpu", "gpu", "poison"),
    ("xid:94", "", "application", "gpu", "application"),
    ("row_remap_pending", "", "degrade", "gpu", "row-remap-pending"),
    ("row_remap_failed", "", "replace", "gpu", "row-remap-failed"),
    ("xid:64", "", "reset_gpu", "gpu", "row-remap-event-failed"),
    ("xid:48", "", "reset_gpu", "gpu", "double-bit-error"),
    ("ecc_dbe", "", "reset_gpu", "gpu", "double-bit-error"),
    ("sbe_storm", "", "record", "gpu", "single-bit-errors"),
    ("xid:92", "", "record", "gpu", "single-bit-errors"),
    ("sram_threshold", "", "replace", "gpu", "sram-threshold"),
    ("xid:119", "", "reset_gpu", "gpu", "firmware"),
    ("xid:120", "", "reset_gpu", "gpu", "firmware"),
    ("xid:62", "", "reset_gpu", "gpu", "firmware"),
    ("xid:109", "", "reset_gpu", "gpu", "catalogue-reset"),
    ("xid:74", "", "reset_gpu", "gpu", "nvlink"),
    ("xid:149", "NETIR_LINK_EVT Nonfatal XC0 i0 Link 08", "record", "gpu", "nvlink-nonfatal"),
    ("xid:149", "NETIR_LINK_EVT Fatal XC0 i0 Link 08", "reset_gpu", "gpu", "nvlink"),
    ("sxid:20034", "Fatal, Link 30 LTSSM Fault Up", "reboot_node", "node", "switch-fatal"),
    ("sxid:12028", "Non-fatal, Link 32 egress non-posted PRIV error", "record", "gpu", "switch-nonfatal"),
    ("fabric", "", "degrade", "node", "fabric"),
    ("false_digest", "", "degrade", "node", "false-digest"),
    ("thermal", "", "degrade", "gpu", "thermal"),
    ("power_brake", "", "degrade", "gpu", "power-brake"),
    ("memory_thermal", "", "degrade", "gpu", "memory-thermal"),
    ("gpu_unavailable", "", "reset_gpu", "gpu", "gpu-unavailable"),
    ("nonfatal_poison", "", "application", "gpu", "nonfatal-poison"),
    ("nvlink", "", "reset_gpu", "gpu", "nvlink"),
    ("sxid:22013", "Minion Link DLREQ interrupt", "record", "gpu", "switch-other"),
    ("pcie", "", "degrade", "gpu", "pcie"),
    ("driver", "", "reboot_node", "node", "driver"),
    ("host", "", "reboot_node", "node", "host"),
    ("xid:151", "", "reboot_node", "node", "restart-machine"),
    ("xid:54", "", "degrade", "gpu", "mechanical-or-power"),
    ("xid:13", "", "application", "gpu", "application"),
    ("xid:31", "", "application", "gpu", "application"),
    ("xid:68", "", "application", "gpu", "application"),
    ("xid:63", "", "record", "gpu", "ignore"),
    ("xid:121", "", "record", "gpu", "ignore"),
    ("xid:160", "", "record", "gpu", "ignore"),
    ("xid:45", "", "record", "gpu", "follows-another"),
    ("xid:167", "", "record", "gpu", "no-published-action"),
    ("xid:999", "", "record", "gpu", "unlisted"),
]


def seen(code: str, *, gpu: str = GPU, minutes: float = 0, detail: str = "") -> Seen:
    return Seen(code=code, gpu=gpu, at=NOON + timedelta(minutes=minutes), detail=detail)


@pytest.mark.parametrize(("code", "detail", "action", "scope", "rule"), POLICY)
def test_each_row_of_the_policy(code: str, detail: str, action: str, scope: str, rule: str) -> None:
    verdict = classify(seen(code, detail=detail), [], TABLE)
    assert (verdict.action, verdict.scope, verdict.rule.id) == (action, scope, rule)
    assert verdict.table_version == TABLE.version
    assert verdict.severity == Severity[verdict.rule.action.name]


def test_every_rule_of_the_table_is_in_the_policy_above() -> None:
    correlated = {correlation.rule for correlation in TABLE.correlations}
    known = {rule for *_, rule in POLICY} | correlated
    assert {rule.id for rule in TABLE.rules} - known == set()


def test_every_code_of_the_table_is_one_that_an_agent_can_tell() -> None:
    numbered = ("xid:", "sxid:", "recovery:")
    codes = {code for rule in TABLE.rules for code in rule.codes if not code.startswith(numbered)}
    assert codes == CODES_OF_AGENTS | CODES_OF_OURS


@pytest.mark.parametrize(
    ("code", "verdict", "action"),
    [
        ("xid:63", "recovery:1", "reset_gpu"),  # the catalogue ignores it
        ("xid:119", "recovery:2", "reboot_node"),  # the catalogue resets
        ("xid:151", "recovery:1", "reset_gpu"),  # the catalogue restarts the machine
        ("xid:31", "recovery:1", "reset_gpu"),  # the catalogue blames the program
        ("xid:119", "recovery:0", "reset_gpu"),  # no verdict: the catalogue decides
    ],
)
def test_the_drivers_own_verdict_outranks_the_catalogue(code: str, verdict: str, action: str) -> None:
    assert classify(seen(code), [seen(verdict, minutes=0.01)], TABLE).action == action


def test_a_verdict_does_not_talk_a_fact_down() -> None:
    assert classify(seen("lost"), [seen("recovery:1")], TABLE).action == "reboot_node"
    assert classify(seen("recovery:1"), [seen("row_remap_failed")], TABLE).action == "replace"


def test_severity_is_the_highest_of_all_even_where_the_verdict_asks_for_less() -> None:
    verdict = classify(seen("xid:151"), [seen("recovery:1")], TABLE)
    assert (verdict.action, verdict.severity) == (Action.RESET_GPU, Severity.REBOOT_NODE)


def test_what_another_gpu_or_another_hour_says_does_not_count() -> None:
    history = [seen("recovery:2", gpu="GPU-b"), seen("recovery:2", minutes=-6)]
    assert classify(seen("xid:119"), history, TABLE).action == "reset_gpu"


def test_an_event_that_names_no_gpu_concerns_the_node() -> None:
    assert classify(seen("xid:119", gpu=""), [], TABLE).scope == "node"


def test_three_contained_errors_in_a_day_are_a_matter_of_the_gpu() -> None:
    two = [seen("xid:94", minutes=-600), seen("xid:94", minutes=-30)]
    assert classify(seen("xid:94"), two[:1], TABLE).action == "application"
    assert classify(seen("xid:94"), two, TABLE).rule.id == "contained-memory-repeats"
    assert classify(seen("xid:94"), [seen("xid:94", minutes=-1500), two[1]], TABLE).action == "application"


def test_page_faults_that_repeat_on_one_gpu_are_suspicious_and_on_two_are_the_program() -> None:
    earlier = seen("xid:31", minutes=-60)
    assert classify(seen("xid:31"), [earlier], TABLE).rule.id == "application-faults-repeat"
    assert classify(seen("xid:31"), [earlier, seen("xid:31", gpu="GPU-b")], TABLE).action == "application"
    assert classify(seen("xid:31"), [seen("xid:31", minutes=-2)], TABLE).action == "application", "one burst"


def test_exceptions_count_only_where_they_name_the_same_place() -> None:
    here, there = "Graphics SM Warp Exception on (GPC 2, TPC 1, SM 0)", "Graphics SM Warp Exception on (GPC 3, TPC 0)"
    again = seen("xid:13", detail=here)
    assert classify(again, [seen("xid:13", minutes=-5, detail=there)], TABLE).action == "application"
    assert classify(again, [seen("xid:13", minutes=-5, detail=here)], TABLE).action == "degrade"
    assert classify(again, [seen("xid:13", minutes=-0.1, detail=here)], TABLE).action == "application"


CODES = sorted({code for rule in TABLE.rules for code in rule.codes if not code.endswith("*")})


@given(st.sampled_from(CODES), st.lists(st.tuples(st.sampled_from(CODES), st.floats(-60, 60)), max_size=6))
def test_the_severity_never_falls_below_that_of_the_action_or_of_the_event(
    code: str, others: list[tuple[str, float]]
) -> None:
    alone = classify(seen(code), [], TABLE)
    together = classify(seen(code), [seen(other, minutes=minutes) for other, minutes in others], TABLE)
    assert together.severity >= together.rule.severity
    assert together.severity >= alone.severity


@given(st.sampled_from([rule for rule in TABLE.rules if rule.action == Action.APPLICATION]), st.data())
def test_a_fault_of_a_program_condemns_no_hardware_alone(rule, data) -> None:  # type: ignore[no-untyped-def]
    code = data.draw(st.sampled_from(rule.codes))
    assert classify(seen(code), [], TABLE).action == Action.APPLICATION


def test_ladders_name_operations_and_only_repairs_have_them() -> None:
    for rule in TABLE.rules:
        assert set(rule.ladder) <= OPERATIONS
        if rule.action in {Action.RESET_GPU, Action.REBOOT_NODE}:
            assert rule.ladder[0] == rule.action
        if rule.action in {Action.RECORD, Action.APPLICATION, Action.REPLACE}:
            assert not rule.ladder


def test_a_driver_outside_the_range_of_the_table_is_noticed() -> None:
    assert TABLE.covers("570.124.06")
    assert TABLE.covers(None)
    assert not TABLE.covers("450.80.02")
