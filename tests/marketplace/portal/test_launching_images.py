"""Launching images: fields that only offers of images have, what goes wrong with them, and how it is explained."""

import pytest
from django.test import Client
from django.urls import reverse

from marketplace import registries
from marketplace.access import Actor
from marketplace.models import Offer, Project
from provisioning.models import Instance
from tests.conftest import Fleet
from tests.marketplace.portal.reading import Page, faults, read

IMAGE = "registry.example.com/team/train:1.0"
FORM = {
    "offer": "h200-narvik", "key": "form-1", "runtime": "podman", "gpus": "1", "replicas": "1", "name": "web",
    "image": IMAGE, "command": "", "ports": "80, 8080", "env": "", "lease": "strict", "on_failure": "restart",
}  # fmt: skip


@pytest.fixture
def boxed(fleet: Fleet) -> Fleet:
    """The H200 offer runs images."""
    Offer.objects.filter(pk=fleet.h200.pk).update(runtime="podman")
    return fleet


def test_an_image_is_launched_with_all_that_goes_with_it(owner: Client, boxed: Fleet) -> None:
    answer = owner.post(reverse("launch"), FORM)
    assert answer.status_code == 302
    made = Instance.objects.get()
    assert (made.image, made.command, made.ports) == (IMAGE, [], [80, 8080])
    assert (made.lease, made.on_failure) == ("strict", "restart")


def test_only_an_offer_of_images_asks_for_one(owner: Client, boxed: Fleet) -> None:
    with_image = read(owner.get(reverse("launch"), {"offer": "h200-narvik"}))
    assert faults(with_image) == []
    assert with_image.value("image") == ""
    assert "Empty: the image's own command runs." in with_image.text
    bare = read(owner.get(reverse("launch"), {"offer": "l40s-narvik"}))
    assert not bare.all("input", name="image")
    assert not bare.all("input", name="ports")
    assert bare.all("input", name="lease", value="sticky")[0].attributes.keys() >= {"checked"}


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"image": ""}, "image", "runs images; name one"),
        ({"image": "train"}, "image", "Begin with the registry"),
        ({"image": "registry.example.com/train"}, "image", "Say which version"),
        ({"ports": "80, http"}, "ports", "Write numbers with commas"),
        ({"ports": "0"}, "ports", "from 1 to 65535"),
        ({"ports": "80 80"}, "ports", "Name each port once"),
        ({"ports": " ".join(str(port) for port in range(1, 22))}, "ports", "at most 20 ports"),
        ({"lease": "loose"}, "lease", "Choose one of strict, sticky"),
    ],
)
def test_bad_input_is_told_beside_its_field_and_loses_nothing(
    owner: Client, boxed: Fleet, changes: dict[str, str], field: str, words: str
) -> None:
    answer = owner.post(reverse("launch"), {**FORM, **changes})
    page = read(answer)
    assert answer.status_code == 422
    assert words in page.text
    assert faults(page) == []
    assert not Instance.objects.exists()
    if field != "lease":
        assert page.value(field) == {**FORM, **changes}[field]


def estimated(client: Client, **changes: str) -> Page:
    return read(client.post(reverse("launch-estimate"), {**FORM, **changes}))


def test_another_offer_brings_its_own_fields(owner: Client, boxed: Fleet, project: Project) -> None:
    """What is being typed is left alone as long as the fields stay the same."""
    here = {"volumes_for": f"h200-narvik {project.public_id}"}
    assert not estimated(owner, **here).all("div", id="runtime-fields")
    other = estimated(owner, offer="l40s-narvik", **here)
    assert other.all("div", id="runtime-fields", hx_swap_oob="true")
    assert not other.all("input", name="image")


def test_the_check_says_where_the_image_comes_from_and_as_whom(
    owner: Client, actor: Actor, project: Project, boxed: Fleet
) -> None:
    from django.utils import timezone

    assert "This offer runs images; name one." in estimated(owner, image="").text
    assert "Say which version" in estimated(owner, image="registry.example.com/a").text
    assert "as a public one, without a user" in estimated(owner).text
    registries.add(
        actor=actor, project=project, host="registry.example.com", username="bot", password="p", at=timezone.now()
    )
    assert "pulled from registry.example.com as bot" in estimated(owner).text


def test_the_command_line_beside_the_form_orders_the_same(owner: Client, boxed: Fleet) -> None:
    html = owner.post(reverse("launch-estimate"), FORM).content.decode()
    line = f"--image {IMAGE} --port 80 --port 8080 --lease strict --restart-on-failure"
    assert line in html
    assert "COMMAND" not in html
    assert "--lease" not in owner.post(reverse("launch-estimate"), {**FORM, "lease": "sticky"}).content.decode()


def test_what_another_offer_s_form_left_behind_is_not_ordered(owner: Client, boxed: Fleet) -> None:
    form = {**FORM, "offer": "l40s-narvik", "command": "true"}
    assert owner.post(reverse("launch"), form).status_code == 302
    made = Instance.objects.get()
    assert (made.image, made.ports) == ("", [])
