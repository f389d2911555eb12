"""Receipts through the API: the very bytes that were signed, in order, and the keys for everybody."""

import json
from typing import Any

import pytest
from django.utils import timezone

from marketplace.cli import chains, proofs
from marketplace.models import ApiToken, Organization, Project, User
from marketplace.receipts import chain
from marketplace.tenants import create_project
from tests.conftest import make_token
from tests.marketplace.api.program import Program
from tests.marketplace.receipts.conftest import append, entry


@pytest.fixture
def program(alice: User, acme: Organization) -> Program:
    return Program(make_token(alice, acme))


def test_what_is_downloaded_is_verified_as_it_came(program: Program, acme: Organization) -> None:
    rows = append(acme, "clm_1", "clm_2", "clm_3")
    keys = proofs.read_keys(Program().get("keys").getvalue())
    lines = program.get("receipts/chain?after=0&limit=2").getvalue().splitlines()
    lines += program.get("receipts/chain?after=2").getvalue().splitlines()
    assert len(lines) == 3
    assert program.get("receipts/chain?after=3").getvalue() == b""
    found = [proofs.verify("it", data, keys) for data in [*lines, program.get("receipts/head").getvalue()]]
    (whole,) = chains.chains(found, is_part=False)
    assert (whole.is_good, whole.count) == (True, 3)
    assert all(one.is_good for one in found)
    one = program.get(f"receipts/{rows[1].public_id}")
    assert one.getvalue() == lines[1]
    assert f"{rows[1].public_id}.json" in one.headers["Content-Disposition"]


def test_the_list_says_what_each_is_about_and_filters_by_claim(program: Program, acme: Organization) -> None:
    append(acme, "clm_1", "clm_2")
    (row,) = program.get("receipts?claim=clm_2").json()["data"]
    assert (row["sequence"], row["event"], row["amount"], row["currency"]) == (2, "settled", "2.776500", "USD")
    assert row["previous"] == program.get("receipts?claim=clm_1").json()["data"][0]["digest"]
    assert program.get("receipts?claim=clm_9").json()["data"] == []


def test_a_token_of_one_project_sees_that_projects_receipts_alone(
    acme: Organization, alice: User, actor: Any, project: Project
) -> None:
    other = create_project(actor=actor, organization=acme, name="other")
    at = timezone.now()
    entries = [entry("clm_1", project=project), entry("clm_2", project=other), entry("clm_3", project=project)]
    rows = chain.append(organization=acme, entries=entries, at=at)
    secret = make_token(alice, acme)
    ApiToken.objects.update(project=project)
    own = Program(secret)
    lines = own.get("receipts/chain").getvalue().splitlines()
    assert [json.loads(line)["body"]["sequence"] for line in lines] == [1, 3]
    assert own.get(f"receipts/{rows[1].public_id}").status_code == 404
    assert own.get(f"receipts/{rows[2].public_id}").status_code == 200
