"""The benchmark itself: small and short, but all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench import machine

ROOT = Path(__file__).resolve().parents[2]


def run(program: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark and return its last line, which with `--json` is its only one."""
    ours = ("GPUMARKET_", "DATABASE_URL", "REDIS_URL", "DJANGO_", "PYTEST_", "TEST_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    argv = [sys.executable, "-m", program, *arguments]
    done = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    return json.loads(done.stdout)


def test_the_rent_benchmark_ends_with_one_line_of_figures() -> None:
    said = run("tests.bench.rent", "--gpus", "800", "--clients", "2", "--seconds", "1", "--workers", "1", "--json")
    assert set(said) == {"name", "figures", "machine"}
    figures = said["figures"]
    assert figures["faults"] == []
    assert figures["accepted"] > 0
    assert set(figures["refusals"]) <= {"no_capacity"}
    assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert figures["pgbench_claims_per_s"] > 0
    assert said["machine"]["cores"] >= 1


def test_the_replay_of_real_demand_leaves_nothing_wrong() -> None:
    size = ("--gpus", "24", "--skip", "2000", "--jobs", "80")
    said = run("tests.bench.replay", "tests/data/philly_jobs_head.csv", *size, "--json")
    figures = said["figures"]
    assert figures["faults"] == []
    assert figures["outcomes"]["finished"] > 0
    assert figures["outcomes"]["waited"] > 0
    ends = {"finished", "still running", "still waiting", "block still ahead", "bids without GPUs", "ended early",
            "never ordered"}  # fmt: skip
    assert sum(figures["outcomes"].get(end, 0) for end in ends) == figures["jobs"], "each job ends in one way"
    assert set(figures["markets"]) == {"on_demand", "spot", "reserved"}
    assert figures["outcomes"]["reserved"] == figures["markets"]["reserved"]["blocks"] > 0
    assert figures["markets"]["reserved"]["used_gpu_hours"] > 0
    assert 0 < figures["utilization"] <= 1
    assert figures["wait_s"]["p50"] <= figures["wait_s"]["p95"]


def test_the_fleet_benchmark_ends_with_one_line_of_figures() -> None:
    said = run("tests.bench.fleet", "--nodes", "96", "--batch", "20", "--interval", "1", "--seconds", "2",
               "--workers", "1", "--no-failures", "--json")  # fmt: skip
    figures = said["figures"]
    assert (figures["faults"], figures["lost_reports"]) == ([], 0)
    assert set(figures["answers"]) == {"ok"}
    assert figures["answers"]["ok"] >= 2 * 96


def test_the_till_benchmark_ends_with_one_line_of_figures() -> None:
    figures = run("tests.bench.till", "--spans", "1200", "--invoices", "300", "--json")["figures"]
    assert (figures["faults"], figures["invoices"], figures["lines"]) == ([], 300, 900)
    assert figures["numbers"] == ["INV-000001", "INV-000300"]
    assert (figures["spans"], figures["rewritten_in_place"] > 0) == (1200, True)
    assert min(figures[name] for name in ("close_s", "bare_close_s", "entries_per_s", "meters_closed_per_s")) > 0


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5), (0.95, 10), (0.99, 10), (0.1, 1)])
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: int) -> None:
    assert machine.percentile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == expected


def test_the_percentile_of_nothing_is_zero() -> None:
    assert machine.percentile([], 0.5) == 0
