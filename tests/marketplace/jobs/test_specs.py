"""Job files: what they may say, and that each fault is told with its place."""

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from marketplace.jobs import schema, spec
from marketplace.jobs.spec import BadSpec

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def faults(text: str) -> list[str]:
    with pytest.raises(BadSpec) as refusal:
        spec.from_file(text, at=NOON)
    return [str(fault) for fault in refusal.value.faults]


def test_a_file_says_what_is_kept_of_it() -> None:
    (one,) = spec.from_file(
        "name: sweep\noffer: h200\ncommand: python3 train.py $LR\ntime_limit: 15m\nmax_cost: 12.50\ndeadline: +6h\n"
        "matrix:\n  LR: [0.10, 1e-3]\n  SEED: [1, 2]\nenv: {N: 3}\n",
        at=NOON,
    )
    assert (one.time_limit_s, one.max_cost_micros, one.deadline) == (900, 12_500_000, NOON + timedelta(hours=6))
    assert one.command == ["/bin/sh", "-c", "python3 train.py $LR"]
    # Numbers stay as they were written.
    assert list(one.tasks)[:3] == [
        {"LR": "0.10", "SEED": "1"},
        {"LR": "0.10", "SEED": "2"},
        {"LR": "1e-3", "SEED": "1"},
    ]
    assert (one.env, one.document["max_cost"], one.document["deadline"]) == ({"N": "3"}, "12.5", "2030-01-01T18:00:00Z")
    assert len(one.sha256) == 64


def test_numbers_are_handed_on_as_they_are_written_and_amounts_are_read() -> None:
    (one,) = spec.from_file(
        "offer: a\nmatrix: {LR: [1.0e-4, 0.10, 1.50e+3, 1_0.5]}\nenv: {EPS: 1.0e-8}\ncommand: [run, 2.0e-2]\n"
        "time_limit: 1h\nmax_cost: .5\n",
        at=NOON,
    )
    assert [task["LR"] for task in one.tasks] == ["1.0e-4", "0.10", "1.50e+3", "1_0.5"]
    assert (one.env, one.command, one.max_cost_micros) == ({"EPS": "1.0e-8"}, ["run", "2.0e-2"], 500_000)
    again = spec.of(json.loads(json.dumps(one.document)), deadline=None)
    assert (again.env, again.command, again.max_cost_micros) == (one.env, one.command, one.max_cost_micros)


@pytest.mark.parametrize("seed", [2**53, -(2**53), 10**17])
def test_a_number_of_any_length_is_handed_on_and_has_a_digest(seed: int) -> None:
    text = f"offer: a\nmatrix: {{SEED: [{seed}]}}\nenv: {{SEED: {seed}}}\ncommand: [run, {seed}]\n"
    (one,) = spec.from_file(text, at=NOON)
    assert (one.env, one.command, one.tasks[0]["SEED"]) == ({"SEED": str(seed)}, ["run", str(seed)], str(seed))
    values = {"offer": "a", "matrix": {"SEED": [seed]}, "env": {"SEED": seed}, "command": ["run", seed]}
    (same,) = spec.from_values([values], at=NOON)
    assert same.sha256 == one.sha256
    assert spec.of(json.loads(json.dumps(one.document)), deadline=None).env == one.env
    (longer,) = spec.from_values([values | {"env": {"SEED": 10**30}}], at=NOON)
    assert (longer.env, len(longer.sha256)) == ({"SEED": str(10**30)}, 64)


@pytest.mark.parametrize(("said", "size"), [("500M", 500 << 20), ("1G", 1 << 30), ("2T", 2 << 40), (None, 20 << 30)])
def test_the_disk_of_an_attempt_is_said_in_binary_units_and_has_an_ordinary_size(said: str | None, size: int) -> None:
    (one,) = spec.from_values([{"offer": "h200", "command": ["a"]} | ({"disk": said} if said else {})], at=NOON)
    assert one.disk_bytes == size
    assert spec.of(one.document, deadline=None).disk_bytes == size


def test_the_same_job_has_the_same_digest_from_a_file_and_from_json() -> None:
    (filed,) = spec.from_file("offer: h200\ncommand: [a, b]\narray: 3\nmax_price: 2.50\n", at=NOON)
    (sent,) = spec.from_values([{"array": 3, "max_price": "2.50", "command": ["a", "b"], "offer": "h200"}], at=NOON)
    assert filed.sha256 == sent.sha256
    assert spec.of(filed.document, deadline=None).command == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("offer: a\nretriess: 1", ["line 2: There is no field “retriess”; did you mean “retries”?"]),
        ("offer: a\ndisk: 0G", ["line 2: Write a whole number with M, G or T (MiB, GiB, TiB), such as 500M, 20G or "
                                "1T."]),
        ("offer: a\ndisk: 20", ["line 2: This is to be a text."]),
        ("offer: a\ngpus: two", ["line 2: This is to be a whole number."]),
        ("offer: a\nenv:\n  A: yes", ["line 3: This is to be a text or a number; write it in quotes."]),
        ("offer: a\n\nenv:\n  1A: x", ["line 4: A variable's name has letters, digits and underscores and does not "
                                       "begin with a digit."]),
        ("offer: a\noffer: b", ["line 2: “offer” is here twice."]),
        ("offer: &x a\nname: *x", ["line 1: Anchors and aliases are not taken; write it out."]),
        ("offer: [a", ["line 2: This is not YAML: did not find expected ',' or ']'."]),
        ("", ["line 1: The file is empty."]),
        ("- offer: a", ["line 1: This is to be names with values."]),
        ("jobs: []", ["line 1: Here is to be a list of jobs, at least one."]),
        ("jobs:\n- offer: a\n- gpus: 1", ["line 3: “offer” is missing."]),
        ("offer: a\narray: 2\nmatrix: {A: [1]}", ["line 3: Say one of array, parameters, matrix."]),
        ("offer: a\nmatrix: {A: [1], GPUMARKET_TASK: [2]}", ["line 2: GPUMARKET_TASK is set by us."]),
        ("offer: a\ndeadline: 2029-01-01", ["line 2: A deadline is later than now, and at most 90 days away."]),
        ("offer: a\ndeadline: soon", ["line 2: Write a moment such as 2026-12-01T18:00Z, or +6h from now."]),
        ("offer: a\ntime_limit: 5 min", ["line 2: Write a whole number with s, m, h or d, such as 90s, 15m, 2h or 1d."]),  # noqa: E501
        ("offer: a\nmax_cost: 0", ["line 2: Write an amount such as 2.50."]),
        ("offer: a\narray: 010", ["line 2: “010” would be read as something else than it says; write it in quotes."]),
        ("offer: a\noutputs: [../x]", ["line 2: Name a path inside the work folder: neither from the root nor with "
                                       "“..”."]),
        ("offer: a\narray: 10001", ["line 2: This is to be at most 10000."]),
        ('offer: a\nenv: {A: "\\0"}', ["line 2: There is a character in it that is none."]),
        ("offer: a\nmarket: cheap", ["line 2: Choose one of on_demand, spot, reserved, cheapest."]),
    ],
)  # fmt: skip
def test_each_fault_is_told_with_its_line(text: str, told: list[str]) -> None:
    assert faults(text) == told


def test_a_file_that_wants_to_be_millions_of_tasks_is_refused_at_once() -> None:
    values = ", ".join(map(str, range(1000)))
    text = "offer: a\nmatrix:\n" + "".join(f"  A{number}: [{values}]\n" for number in range(16))
    assert faults(text) == ["line 2: At most 10000 tasks are submitted at once."]
    assert faults("[" * 5000)[0].startswith("line 1: ")
    assert "at most" in faults("#" * 2_000_000)[0]


def test_what_was_sent_as_json_is_told_by_its_path() -> None:
    with pytest.raises(BadSpec) as refusal:
        spec.from_values([{"offer": "a"}, {"offer": "a", "outputs": ["ok", 3]}, "x"], at=NOON)
    assert [fault.pointer for fault in refusal.value.faults] == ["/jobs/1/outputs/1", "/jobs/2"]


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    with suppress(BadSpec):
        spec.from_file(text, at=NOON)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*schema.JOB["properties"], "x"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_no_value_breaks_the_reader(value: object) -> None:
    with suppress(BadSpec):
        spec.from_values([value], at=NOON)


def test_the_schema_is_published_as_it_is_used() -> None:
    published = Path(__file__).parents[3] / "docs" / "job.schema.json"
    assert json.loads(published.read_text()) == schema.FILE
    Draft202012Validator.check_schema(schema.FILE)
    check = Draft202012Validator(schema.FILE)
    assert check.is_valid({"offer": "a", "array": 3})
    assert check.is_valid({"jobs": [{"offer": "a"}]})
    assert not check.is_valid({"jobs": [{"offer": "a", "gpu": 1}]})
