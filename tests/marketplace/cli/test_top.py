"""`gpumarket top`: what the GPUs of an instance do now."""

import pytest


def make_gpu(uuid, current=True, **point):
    untold = dict.fromkeys(["utilization_percent", "memory_used_mib", "power_watts", "temperature_c", "energy_joules"])
    return {
        "uuid": uuid,
        "current": current,
        "energy_joules": None,
        "points": [{"at": "2030-01-01T12:00:00Z", **untold, **point}],
    }


@pytest.fixture
def renter(gpumarket, shop):
    shop.runs_on = True
    gpumarket("launch", "--name", "train", "--", "python3", "train.py")
    return gpumarket


def test_top_prints_one_table_where_nobody_looks_on(renter, shop):
    shop.telemetry = [make_gpu("GPU-a", utilization_percent=97.0, power_watts=612.4), make_gpu("GPU-b", power_watts=0)]
    shop.telemetry.append(make_gpu("GPU-of-the-run-before", current=False, power_watts=500))
    said = renter("top", "train")
    assert said.code == 0
    head, first, second = said.out.splitlines()
    assert head.split() == ["GPU", "UTILIZATION", "MEMORY", "POWER", "TEMPERATURE", "ENERGY"]
    assert first.split() == ["GPU-a", "97", "%", "—", "612", "W", "—", "—"]
    assert second.split() == ["GPU-b", "—", "—", "0", "W", "—", "—"]
    assert shop.asked("GET", "/api/v1/instances/ins_1/telemetry")[0]["query"]["resolution"] == "10s"


def test_top_as_json_is_the_answer_once(renter, shop):
    shop.telemetry = [make_gpu("GPU-a")]
    assert renter("top", "train", "--json").json["gpus"] == shop.telemetry


def test_top_of_gpus_that_said_nothing_says_so(renter):
    said = renter("top", "train")
    assert (said.code, said.out) == (0, "")
    assert "Nothing was read" in said.err
