"""Why something is where it is, on its pages; and the policies on theirs."""

import html
import json
import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.html import escape

from marketplace.models import Offer, Organization, Project
from provisioning import policies
from provisioning.models import Instance, Node, PlacementDecision
from provisioning.placing import policy
from tests.conftest import Fleet, Rent
from tests.marketplace.portal.reading import Page, faults, read


def test_an_instance_leads_to_its_decision(owner: Client, stranger: Client, rent: Rent) -> None:
    instance = rent(gpus=2)
    decision = PlacementDecision.objects.get(instance=instance)
    address = reverse("placement", args=[decision.public_id])
    assert read(owner.get(reverse("instance", args=[instance.public_id]))).all("a", href=address)
    page = read(owner.get(address))
    assert "Why it is where it is" in page.text
    assert "one NVLink group" in page.text
    assert faults(page) == []
    assert stranger.get(address).status_code == 404


def test_a_refused_launch_leads_to_what_was_looked_at(owner: Client, fleet: Fleet, project: Project) -> None:
    Node.objects.update(state="cordoned")
    form = read(owner.get(reverse("launch"), {"offer": fleet.h200.slug}))
    sent = {"offer": fleet.h200.slug, "gpus": "1", "replicas": "1", "command": "true", "key": form.value("key")}
    refused = owner.post(reverse("launch"), {**sent, "project": project.public_id})
    decision = PlacementDecision.objects.get()
    assert read(refused).all("a", href=reverse("placement", args=[decision.public_id]))
    page = read(owner.get(reverse("placement", args=[decision.public_id])))
    assert "taken out of service by the operator" in page.text
    assert not Instance.objects.exists()


def saved(browser: Client, scope: Organization | Project, document: str, version: int = 0) -> Any:
    form = {"scope": scope.public_id, "document": document, "version": str(version)}
    return browser.post(reverse("policies"), form)


def test_a_policy_is_saved_and_shown(owner: Client, viewer: Client, acme: Organization) -> None:
    assert saved(owner, acme, '{"countries": {"deny": ["us"]}}').status_code == 302
    row = policies.of(organization_id=acme.pk)
    assert row is not None
    assert row.document == {"countries": {"deny": ["US"]}}
    page = read(owner.get(reverse("policies")))
    assert "&quot;US&quot;" in page.html
    assert faults(page) == []
    assert not read(viewer.get(reverse("policies"))).all("textarea")
    assert saved(viewer, acme, "{}").status_code == 403


@pytest.mark.parametrize(("document", "words"), [("{", "not valid JSON"), ('{"country": {}}', "no such rule")])
def test_what_is_wrong_with_a_policy_is_told_and_what_was_typed_stays(
    owner: Client, acme: Organization, document: str, words: str
) -> None:
    answer = saved(owner, acme, document)
    page = read(answer)
    assert answer.status_code == 422
    assert words in page.text
    assert faults(page) == []
    assert escape(document) in page.html
    assert policies.of(organization_id=acme.pk) is None


def test_examples_of_policies_can_be_copied(owner: Client, acme: Organization) -> None:
    page = read(owner.get(reverse("policies")))
    examples = [html.unescape(found) for found in re.findall(r"<code>({.*?})</code>", page.html)]
    assert len(examples) == 5
    for example in examples:
        assert policy.checked(json.loads(example))


def test_the_launch_form_neither_chooses_nor_ticks_what_a_policy_keeps_out(
    owner: Client, fleet: Fleet, acme: Organization
) -> None:
    def cost() -> str:
        return owner.post(reverse("launch-estimate"), {"offer": "l40s-narvik", "gpus": "1", "replicas": "1"}).text

    def form() -> Page:
        return read(owner.get(reverse("launch")))

    assert "check-bad" not in cost()
    assert "selected" in form().all("option", value="l40s-narvik")[0].attributes
    rule = {"allow": [acme.public_id]}
    Offer.objects.filter(pk=fleet.h200.pk).update(supplier=acme)
    assert saved(owner, acme, json.dumps({"suppliers": rule})).status_code == 302
    assert "A policy keeps it out: the offer is of a supplier that a policy excludes." in cost()
    assert 'aria-disabled="true"' in cost()
    page = form()
    assert faults(page) == []
    assert "selected" in page.all("option", value="h200-narvik")[0].attributes
    assert page.text.count("(kept out by a policy)") == 1
