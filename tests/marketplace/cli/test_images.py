"""Ordering images from the command line, and watching one being pulled."""

import pytest

from marketplace.cli import words
from marketplace.cli.progress import Steps
from marketplace.cli.session import Session
from marketplace.cli.terminal import Terminal
from tests.marketplace.cli.shop import make_offer

IMAGE = "registry.example.com/team/train:1.0"


@pytest.fixture
def images(shop):
    shop.offers = [make_offer("bare"), make_offer("boxed", amount="3.000000", runtime="podman")]
    shop.runs_on = True


def test_an_image_is_ordered_with_all_that_goes_with_it(gpumarket, shop, images):
    said = gpumarket("launch", "boxed", "--name", "web", "--image", IMAGE, "--port", "80", "--port", "8080",
                     "--lease", "strict", "--restart-on-failure", "--", "serve")  # fmt: skip
    assert said.code == 0
    assert shop.asked("POST", "/api/v1/instances")[0]["body"] == {
        "offer": "boxed", "replicas": 1, "gpus": 1, "command": ["serve"], "name": "web", "image": IMAGE,
        "ports": [80, 8080], "lease": "strict", "on_failure": "restart",
    }  # fmt: skip
    shown = gpumarket("show", "web").out
    for line in (
        f"image     {IMAGE}",
        "ports     80, 8080",
        "lease     strict: without contact it ends after 2 min, and",
        "restarts  ",
    ):
        assert line in shown


def test_an_image_needs_no_command_of_its_own(gpumarket, shop, images):
    assert gpumarket("launch", "--image", IMAGE).code == 0
    body = shop.asked("POST", "/api/v1/instances")[0]["body"]
    assert (body["offer"], body["command"]) == ("boxed", [])
    assert "the own one of its image" in gpumarket("show", "ins_1").out


def test_without_an_image_a_command_is_needed_and_no_image_s_offer_is_chosen(gpumarket, shop, images):
    said = gpumarket("launch", "--gpus", "1")
    assert said.code == 2
    assert "With --image it may be left out" in said.err
    shop.offers = [make_offer("boxed", runtime="podman")]
    said = gpumarket("launch", "--", "true")
    assert said.code == 2
    assert "Every offer runs images and needs --image." in said.err
    shop.offers = [make_offer("bare")]
    assert (
        "No offer of H200 in NO runs images."
        in gpumarket("launch", "--image", "a.example/b:1", "--gpu-model", "H200", "--country", "no").err
    )
    shop.offers = []
    assert "Nothing is for sale now." in gpumarket("launch", "--", "true").err


def test_the_table_of_offers_says_what_each_runs(gpumarket, images):
    rows = {line.split()[0]: line for line in gpumarket("offers").out.splitlines()}
    assert " images " in rows["boxed"]
    assert " commands " in rows["bare"]


@pytest.mark.parametrize(
    ("total", "rate", "percent", "said"),
    [
        (3_400_000_000, 80_000_000, 35, "Pull the image: 1.2 GB of 3.4 GB, 35 %, 80.0 MB/s"),
        (None, 80_000_000, None, "Pull the image: 1.2 GB, 80.0 MB/s"),
        (None, 0, None, "Pull the image: 1.2 GB"),
    ],
)
def test_a_pull_is_said_with_what_is_known(total, rate, percent, said):
    progress = {"title": "Pull the image", "done_bytes": 1_200_000_000, "total_bytes": total, "bytes_per_s": rate,
                "percent": percent}  # fmt: skip
    assert words.transfer(progress) == said


def test_the_steps_of_a_start_show_the_pull(capsys):
    step = {"name": "prepare", "title": "Prepare", "state": "active", "elapsed_ms": 20_000, "typical_ms": None,
            "progress": {"title": "Pull the image", "done_bytes": 5_000_000, "total_bytes": 10_000_000,
                         "bytes_per_s": 1_000_000, "percent": 50}}  # fmt: skip
    last = {"name": "run", "title": "Run", "state": "waiting"}
    Steps(Session(terminal=Terminal(), client=None)).look({"steps": [step, last], "cost": {"billing": "not_started"}})
    assert "Pull the image: 5.0 MB of 10.0 MB, 50 %, 1.0 MB/s; billing has not started" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456_789, "123 MB"), (2 * 10**12, "2.0 TB")],
)
def test_sizes_are_short(count, said):
    assert words.size(count) == said


def test_every_reason_has_words():
    """The command line knows nothing of the server's code, so this test compares the two."""
    from provisioning.models import Reason

    assert set(words.REASONS) == {reason.value for reason in Reason if reason.value}
    assert words.why({"reason": "gpu_fault", "message": "XID 79"}) == "a GPU failed: XID 79"
    assert words.why({"reason": "", "message": ""}) == ""
