"""Launching from the form: the price beside it, checks while typing, once however often it is sent."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from marketplace.models import Offer, Organization, Project
from provisioning.models import Instance
from tests.conftest import Fleet, Storage
from tests.marketplace.portal.reading import Page, faults, read

FORM: dict[str, str] = {"gpus": "2", "replicas": "1", "command": "sleep 1000", "env": "", "name": "trainer"}


def sent(client: Client, fleet: Fleet, **changes: str) -> Any:
    form = {"offer": fleet.h200.slug, "key": "form-1", **FORM, **changes}
    return client.post(reverse("launch"), form)


def refused(client: Client, fleet: Fleet, status: int, **changes: str) -> Page:
    """Send a form that is refused; nothing was made, and everything that was typed is still there."""
    answer = sent(client, fleet, **changes)
    assert answer.status_code == status
    assert not Instance.objects.exists()
    page = read(answer)
    assert faults(page) == []
    for name, typed in {**FORM, **changes}.items():
        if name in FORM:
            assert page.value(name).strip() == typed.strip()
    return page


def test_the_form_shows_what_it_costs_before_anything_is_sent(owner: Client, fleet: Fleet) -> None:
    page = read(owner.get(reverse("launch"), {"offer": "h200-narvik", "gpus": "4"}))
    for words in ("$9.96 per hour", "$0.002767", "$239.04", "Billing starts when ready", "Launch, $9.96/h when ready"):
        assert words in page.text
    assert page.all("option", value="h200-narvik")[0].attributes.keys() >= {"selected"}


def test_without_an_offer_the_cheapest_free_one_is_chosen(owner: Client, fleet: Fleet) -> None:
    page = read(owner.get(reverse("launch")))
    assert "selected" in page.all("option", value="l40s-narvik")[0].attributes


def test_a_form_rents_and_leads_to_the_instance(owner: Client, fleet: Fleet) -> None:
    answer = sent(owner, fleet, command='python3 -c "print(1)"', env="A=1\nB=x=y\n\n")
    instance = Instance.objects.get()
    assert answer.headers["Location"] == reverse("instance", args=[instance.public_id])
    assert (instance.name, instance.gpus, instance.command) == ("trainer", 2, ["python3", "-c", "print(1)"])
    assert instance.env == {"A": "1", "B": "x=y"}


def test_a_double_click_rents_once(owner: Client, fleet: Fleet) -> None:
    first, second = sent(owner, fleet), sent(owner, fleet)
    assert first.headers["Location"] == second.headers["Location"]
    assert Instance.objects.count() == 1


def test_a_form_that_was_sent_before_asks_before_it_rents_more(owner: Client, fleet: Fleet) -> None:
    sent(owner, fleet)
    answer = sent(owner, fleet, name="another")
    page = read(answer)
    assert answer.status_code == 409
    assert "This form was sent before" in page.text
    assert page.value("name") == "another"
    assert page.value("key") != "form-1"
    assert Instance.objects.count() == 1
    sent(owner, fleet, name="another", key=page.value("key"))
    assert Instance.objects.count() == 2


def test_a_refused_form_may_be_sent_again_with_its_key(owner: Client, fleet: Fleet) -> None:
    refused(owner, fleet, 422, gpus="40")
    assert sent(owner, fleet).status_code == 302


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus": "0"}, "at least 1 GPU"),
        ({"gpus": "-1"}, "whole number"),
        ({"gpus": "two"}, "whole number"),
        ({"gpus": "1e3"}, "whole number"),
        ({"gpus": "99999999999999999999"}, "whole number"),
        ({"gpus": "9"}, "has 8 GPUs"),
        ({"gpus": "8", "replicas": "3"}, "sold from 1 to 16"),
        ({"replicas": "0"}, "1 to 10000 replicas"),
        ({"command": ""}, "Say what to run"),
        ({"command": "echo 'open"}, "quotation mark"),
        ({"env": "NOVALUE"}, "no “=”"),
        ({"env": "1X=2"}, "does not begin with a digit"),
        ({"name": "Not A Name"}, "lower-case letters"),
        ({"name": "x" * 10_000}, "lower-case letters"),
    ],
)
def test_bad_input_is_told_beside_its_field_and_loses_nothing(
    owner: Client, fleet: Fleet, changes: dict[str, str], words: str
) -> None:
    page = refused(owner, fleet, 422, **changes)
    assert words in page.text
    assert "Nothing was started or charged" in page.text


@pytest.mark.parametrize("field", ["command", "env", "name", "gpus"])
def test_nul_bytes_are_refused(owner: Client, fleet: Fleet, field: str) -> None:
    assert sent(owner, fleet, **{field: "A=\x00"}).status_code == 422
    assert not Instance.objects.exists()


def test_full_width_digits_are_digits(owner: Client, fleet: Fleet) -> None:
    assert sent(owner, fleet, gpus="２").status_code == 302
    assert Instance.objects.get().gpus == 2


def test_a_name_in_use_is_told_beside_the_name(owner: Client, fleet: Fleet) -> None:
    sent(owner, fleet)
    answer = sent(owner, fleet, key="form-2")
    assert answer.status_code == 409
    assert "named trainer already" in read(answer).text


def test_too_little_credit_is_told_with_numbers_and_where_to_go(
    owner: Client, fleet: Fleet, acme: Organization
) -> None:
    acme.accounts.filter(kind="promo").update(balance_micros=1_000_000)
    page = refused(owner, fleet, 402)
    assert "Not enough credit" in page.text
    assert "This needs $4.98 of free credit; $1.00 is free." in page.text
    assert "Nothing was started, changed or charged." in page.text
    assert page.all("a", href=reverse("balance"))
    assert "Reference: " in page.text


def test_a_used_up_quota_is_told_with_numbers(owner: Client, fleet: Fleet, project: Project) -> None:
    project.quotas.update(limit=1)
    assert "You asked for 2 more GPUs; the project holds 0 of 1." in refused(owner, fleet, 409).text


def test_no_free_gpus_are_told_with_what_is_free(owner: Client, fleet: Fleet) -> None:
    for node in fleet.nodes.values():
        node.node.free_mask = 0
        node.node.save()
    page = refused(owner, fleet, 409)
    assert "Too few GPUs of H200 in Narvik are free now: 0 over all its nodes, of 2 asked for." in page.text
    assert page.all("a", href=reverse("market"))


def test_a_viewer_may_not_launch(viewer: Client, fleet: Fleet) -> None:
    answer = sent(viewer, fleet)
    assert answer.status_code == 403
    assert "Your role Viewer may not do this" in read(answer).text
    assert not Instance.objects.exists()


def test_nobody_launches_in_somebody_elses_project(stranger: Client, fleet: Fleet, project: Project) -> None:
    assert sent(stranger, fleet, project=project.public_id).status_code == 404
    assert not Instance.objects.exists()


def test_an_offer_that_is_not_listed_is_not_found(owner: Client, fleet: Fleet) -> None:
    Offer.objects.filter(pk=fleet.h200.pk).update(is_listed=False)
    assert sent(owner, fleet).status_code == 404
    assert owner.get(reverse("launch"), {"offer": "h200-narvik"}).status_code == 404


def test_with_nothing_for_sale_the_form_says_so(owner: Client, db: None) -> None:
    assert "Nothing is for sale yet" in read(owner.get(reverse("launch"))).text


def estimate(client: Client, fleet: Fleet, **changes: str) -> str:
    answer = client.post(reverse("launch-estimate"), {"offer": fleet.h200.slug, **FORM, **changes})
    assert answer.status_code == 200
    return read(answer).text


def test_the_estimate_follows_what_is_typed(owner: Client, fleet: Fleet) -> None:
    text = estimate(owner, fleet, gpus="3", replicas="2")
    assert "$14.94 per hour" in text
    assert "Not yet:" not in text
    assert "<html" not in text
    assert not Instance.objects.exists()


def test_the_estimate_names_each_obstacle_and_its_remedy(
    owner: Client, fleet: Fleet, project: Project, acme: Organization
) -> None:
    project.quotas.update(limit=10)
    acme.accounts.filter(kind="promo").update(balance_micros=1_000_000)
    text = estimate(owner, fleet, gpus="8", replicas="3")
    assert text.count("Not yet:") == 4
    for words in ("sold from 1 to 16", "16 GPUs are free now, at most 8", "0 of 10 GPUs are held", "$59.76"):
        assert words in text


def test_an_estimate_of_half_typed_numbers_waits(owner: Client, fleet: Fleet) -> None:
    assert "Type whole numbers" in estimate(owner, fleet, gpus="")


def test_the_order_can_be_copied_as_a_command(owner: Client, fleet: Fleet) -> None:
    answer = owner.post(
        reverse("launch-estimate"),
        {"offer": fleet.h200.slug, **FORM, "command": "echo 'two words'", "env": "A=b c"},
    )
    commands = [element.text for element in read(answer).all("pre")]
    assert commands[0] == ("gpumarket launch h200-narvik --gpus 2 --name trainer --env 'A=b c' -- echo 'two words'")
    assert '"command": ["echo", "two words"]' in commands[1]


def test_the_button_is_kept_back_with_its_reason_while_a_check_is_red(owner: Client, fleet: Fleet) -> None:
    good = read(owner.get(reverse("launch"), {"offer": "h200-narvik"}))
    assert "aria-disabled" not in good.all("button", id="launch-button")[0].attributes
    page = read(owner.get(reverse("launch"), {"offer": "h200-narvik", "gpus": "9"}))
    assert faults(page) == []
    (button,) = page.all("button", id="launch-button")
    assert (button.attributes["aria-disabled"], button.attributes["aria-describedby"]) == ("true", "launch-why")
    assert "a node of H200 in Narvik has 8 GPUs" in page.all("p", id="launch-why")[0].text
    unread = read(owner.get(reverse("launch"), {"offer": "h200-narvik", "gpus": "many"}))
    assert unread.all("button", id="launch-button")[0].attributes["aria-disabled"] == "true"


def test_one_gpu_is_no_gpus(owner: Client, fleet: Fleet, project: Project) -> None:
    project.quotas.update(limit=1)
    assert "0 of 1 GPU is held or reserved." in read(owner.get(reverse("launch"), {"offer": "h200-narvik"})).text


def test_volumes_of_the_site_are_chosen_in_the_form_and_shown_in_the_command(
    owner: Client, fleet: Fleet, storage: Storage
) -> None:
    data, copy = storage.make("data"), storage.make("free")
    page = read(owner.get(reverse("launch"), {"offer": "h200-narvik"}))
    assert faults(page) == []
    assert page.value(f"path-{data.public_id}") == "/data"
    chosen = {"volume": data.public_id, f"path-{data.public_id}": "/mnt/sets", "runtime": "process"}
    fragment = owner.post(reverse("launch-estimate"), FORM | {"offer": "h200-narvik"} | chosen).content.decode()
    assert "--volume data:/mnt/sets" in fragment
    assert '"path": "/mnt/sets"' in fragment.replace("&quot;", '"')
    assert sent(owner, fleet, **chosen).status_code == 302
    attached = Instance.objects.get().volume_attachments.get()
    assert (attached.volume.pk, attached.path, attached.read_only) == (data.pk, "/mnt/sets", False)
    # Who comes later sees that it is in use, and cannot tick it.
    page = read(owner.get(reverse("launch"), {"offer": "h200-narvik"}))
    assert "disabled" in page.all("input", id=f"volume-{data.public_id}")[0].attributes
    assert "disabled" not in page.all("input", id=f"volume-{copy.public_id}")[0].attributes
    assert "data is attached already" in page.text


def test_a_container_may_have_a_volume_read_only(owner: Client, fleet: Fleet, storage: Storage) -> None:
    data = storage.make("data")
    Offer.objects.filter(pk=fleet.h200.pk).update(runtime="podman")
    chosen = {"volume": data.public_id, f"path-{data.public_id}": "/data", f"ro-{data.public_id}": "true"}
    chosen["image"] = "registry.example.com/train:1"
    fragment = owner.post(reverse("launch-estimate"), FORM | {"offer": "h200-narvik"} | chosen).content.decode()
    assert "--volume data:/data:ro" in fragment
    assert sent(owner, fleet, **chosen).status_code == 302
    assert Instance.objects.get().volume_attachments.get().read_only


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("data", "begins with a slash"),
        ("/etc", "belongs to the system"),
        ("", "begins with a slash"),
        ("/data:old", "has letters, digits"),
    ],
)
def test_a_bad_path_is_told_beside_the_volumes_and_stays_typed(
    owner: Client, fleet: Fleet, storage: Storage, path: str, words: str
) -> None:
    data = storage.make("data")
    page = refused(owner, fleet, 422, **{"volume": data.public_id, f"path-{data.public_id}": path})
    assert words in page.all("p", id="volumes-error")[0].text
    assert page.value(f"path-{data.public_id}") == path
    assert "checked" in page.all("input", id=f"volume-{data.public_id}")[0].attributes


def test_a_volume_of_strangers_or_none_is_told_beside_the_volumes(
    owner: Client, fleet: Fleet, storage: Storage
) -> None:
    page = refused(owner, fleet, 422, **{"volume": "vol_of_nobody", "path-vol_of_nobody": "/data"})
    assert "The project has no volume vol_of_nobody." in page.all("p", id="volumes-error")[0].text
