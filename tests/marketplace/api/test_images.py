"""Ordering images over the API: every field, every refusal, and what the answers show."""

from typing import Any

import pytest

from marketplace.models import Offer
from provisioning.models import Instance
from tests.conftest import Fleet, Run
from tests.marketplace.api.program import Program, problem_of

IMAGE = "registry.example.com/team/train:1.0"


@pytest.fixture
def boxed(fleet: Fleet, program: Program) -> Program:
    """The H200 offer runs images."""
    Offer.objects.filter(pk=fleet.h200.pk).update(runtime="podman")
    return program


def test_an_image_is_rented_with_all_that_goes_with_it(boxed: Program, fleet: Fleet, run_until_idle: Run) -> None:
    answer = boxed.rent(command=None, image=IMAGE, ports=[80, 8080], lease="strict", on_failure="restart")
    assert answer.status_code == 202
    told = answer.json()
    assert (told["image"], told["command"], told["ports"]) == (IMAGE, [], [80, 8080])
    assert (told["lease"], told["on_failure"], told["restarts"]) == ("strict", "restart", 0)
    assert told["lease_s"] == 120
    assert told == boxed.get(f"instances/{told['id']}").json() | {"as_of": told["as_of"], "steps": told["steps"]}
    run_until_idle()
    desired = next(entry for node in fleet.nodes.values() for entry in node.desired.values())
    assert (desired["image"], desired["ports"], desired["lease_s"]) == (IMAGE, [80, 8080], 120)


def test_what_is_not_said_is_sticky_and_stops(boxed: Program) -> None:
    told = boxed.rent(image=IMAGE).json()
    assert (told["ports"], told["lease"], told["on_failure"]) == ([], "sticky", "stop")


def test_an_offer_says_what_it_runs(boxed: Program) -> None:
    assert {row["slug"]: row["runtime"] for row in boxed.get("offers").json()["data"]} == {
        "h200-narvik": "podman", "l40s-narvik": "process",
    }  # fmt: skip


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"image": None}, "/image"),
    ({"image": "ubuntu"}, "/image"),
    ({"image": "registry.example.com/a"}, "/image"),
    ({"image": "registry.example.com/a:1 --privileged"}, "/image"),
    ({"image": 5}, "/image"),
    ({"image": ""}, "/image"),
    ({"image": "x" * 600}, "/image"),
    ({"ports": [0]}, "/ports/0"),
    ({"ports": [65_536]}, "/ports/0"),
    ({"ports": ["80"]}, "/ports/0"),
    ({"ports": [80, 80]}, "/ports"),
    ({"ports": list(range(1, 22))}, "/ports"),
    ({"ports": 80}, "/ports"),
    ({"lease": "loose"}, "/lease"),
    ({"on_failure": "explode"}, "/on_failure"),
    ({"command": [""]}, "/command"),
]


@pytest.mark.parametrize("dry_run", ["", "?dry_run=true"])
def test_each_fault_is_named_and_nothing_is_made(boxed: Program, dry_run: str) -> None:
    for number, (changes, pointer) in enumerate(REFUSED):
        body = {"offer": "h200-narvik", "command": ["true"], "image": IMAGE} | changes
        sent = {name: value for name, value in body.items() if value is not None}
        answer = boxed.post(f"instances{dry_run}", sent, key=f"k{number}")
        errors = problem_of(answer, 422, "invalid_request")["errors"]
        assert pointer in [error["pointer"] for error in errors], (changes, errors)
    assert not Instance.objects.exists()


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [({"image": IMAGE}, "/image"), ({"ports": [80]}, "/ports"), ({"command": []}, "/command"),
     ({"command": None}, "/command")],
)  # fmt: skip
def test_an_offer_of_commands_takes_no_image(program: Program, changes: dict[str, Any], pointer: str) -> None:
    problem_of(program.rent(**changes), 422, "invalid_request", names=pointer)


def test_a_dry_run_prices_an_image_and_makes_nothing(boxed: Program) -> None:
    answer = boxed.post("instances?dry_run=true", {"offer": "h200-narvik", "image": IMAGE}, key="k")
    assert answer.json()["would_rent"] is True
    assert not Instance.objects.exists()
