"""Renting through the API: what an order becomes, what it would become, and what is told about it."""

import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from billing import books
from billing.models import Account
from marketplace import spot_terms, tenants, tokens
from marketplace.access import person
from marketplace.models import Organization, Project, Role, SpotTerms, User
from provisioning.models import GpuHold, Instance, Node, Quota
from tests.conftest import Fleet, Run, make_member, make_token
from tests.marketplace.api.program import Program, problem_of
from tests.marketplace.api.tables import every_row
from tests.marketplace.api.tenant import ssh_key

MONEY = re.compile(r"-?[0-9]+\.[0-9]{6}")
ORDER = {"offer": "h200-narvik", "command": ["sleep", "1000"]}


def test_an_order_becomes_an_instance_that_waits_for_its_node(program: Program, project: Project) -> None:
    answer = program.rent(name="training", gpus=2, replicas=2, env={"B": "secret", "A": "1"})
    instance = answer.json()
    assert answer.status_code == 202
    assert re.fullmatch(r"ins_[a-z2-7]{20}", instance["id"])
    assert (instance["name"], instance["phase"], instance["desired"]) == ("training", "queued", "running")
    assert instance["project"] == {"id": project.public_id, "name": "default"}
    assert (instance["replicas"], instance["gpus_per_replica"], instance["gpus"]) == (2, 2, 4)
    assert instance["env_names"] == ["A", "B"]
    assert "secret" not in answer.content.decode()
    assert instance["cost"]["billing"] == "not_started"
    assert [(place["replica"], len(place["gpus"])) for place in instance["nodes"]] == [(0, 2), (1, 2)]
    assert [step["state"] for step in instance["steps"]] == ["active", "waiting", "waiting", "waiting"]


def test_counters_that_its_node_is_to_read_are_ordered_with_it(program: Program) -> None:
    counters = {"port": 8000, "names": ["tokens_total"]}
    answer = program.rent(name="counted", counters=counters)
    assert answer.status_code == 202
    read = Instance.objects.get(name="counted").counters
    assert read == {**counters, "path": "/metrics", "most_per_s": 0}
    for spoilt in ({"port": 0}, {"names": []}, {"path": "metrics"}, {"names": ["a-b"]}, {"most_per_s": 1}):
        refused = program.rent(key=str(spoilt), counters=counters | spoilt)
        assert refused.status_code == 422, spoilt


def test_money_is_exact_decimal_strings(program: Program, running: Instance) -> None:
    cost = program.get(f"instances/{running.public_id}").json()["cost"]
    rates = {name: cost[name] for name in ("per_second", "per_hour", "per_day")}
    assert rates == {"per_second": "0.000692", "per_hour": "2.490000", "per_day": "59.760000"}
    balance = program.get("balance").json()
    amounts = [balance[name] for name in ("available", "promo", "cash", "held", "owed", "burn_per_hour")]
    span = program.get("usage").json()["data"][0]
    offer = program.get("offers/h200-narvik").json()
    price = {"amount": "2.490000", "currency": "USD", "unit": "gpu_hour"}
    assert span["price"] == price
    assert offer["price"] == price | {"model": "flat", "tiers": [], "minimum_per_month": None}
    for amount in [*amounts, cost["so_far"], span["amount"]["amount"]]:
        assert MONEY.fullmatch(amount), amount
    assert (balance["currency"], balance["burn_per_hour"]) == ("USD", "2.490000")


def test_what_changes_says_when_it_was_so(program: Program, running: Instance) -> None:
    before = timezone.now()
    for path in ("offers/h200-narvik", f"instances/{running.public_id}", "balance"):
        as_of = datetime.fromisoformat(program.get(path).json()["as_of"])
        assert before <= as_of <= timezone.now() + timedelta(seconds=1)


def availability(program: Program, instance: Instance) -> dict[str, bool]:
    actions = program.get(f"instances/{instance.public_id}").json()["actions"]
    assert all((action["reason"] is None) == action["available"] for action in actions.values())
    return {verb: action["available"] for verb, action in actions.items()}


def test_actions_say_what_may_be_done_and_the_verbs_agree(
    program: Program, running: Instance, run_until_idle: Run
) -> None:
    path = f"instances/{running.public_id}"
    assert availability(program, running) == {"start": False, "stop": True, "terminate": True, "rename": True}
    problem_of(program.post(f"{path}/start", key="1"), 409, "wrong_state")
    program.post(f"{path}/stop")
    run_until_idle()
    assert availability(program, running) == {"start": True, "stop": False, "terminate": True, "rename": True}
    program.post(f"{path}/terminate")
    run_until_idle()
    assert availability(program, running) == dict.fromkeys(("start", "stop", "terminate", "rename"), False)
    problem_of(program.post(f"{path}/start", key="2"), 409, "wrong_state")
    problem_of(program.ask("patch", path, {"name": "late"}), 409, "wrong_state")


def test_stop_start_and_terminate_lead_there(program: Program, running: Instance, run_until_idle: Run) -> None:
    path, phases = f"instances/{running.public_id}", []
    for verb in ("stop", "start", "stop", "terminate"):
        assert program.post(f"{path}/{verb}", key=verb + str(len(phases))).status_code == 202
        run_until_idle()
        phases.append(program.get(path).json()["phase"])
    assert phases == ["stopped", "running", "stopped", "terminated"]
    events = program.get(f"{path}/events").json()["data"]
    assert (events[0]["new_phase"], events[-1]["new_phase"]) == ("terminated", "queued")
    assert books.check(at=timezone.now()) == []


def test_a_name_can_be_changed_and_found(program: Program, running: Instance) -> None:
    assert program.ask("patch", f"instances/{running.public_id}", {"name": "renamed"}).json()["name"] == "renamed"
    assert [row["id"] for row in program.get("instances?name=renamed").json()["data"]] == [running.public_id]
    assert program.get("instances?name=other").json()["data"] == []
    assert program.get("instances?phase=stopped").json()["data"] == []
    assert len(program.get("instances?phase=running").json()["data"]) == 1


# A dry run.


def test_a_dry_run_prices_the_order_and_does_nothing(program: Program, django_capture_on_commit_callbacks: Any) -> None:
    before = every_row()
    with django_capture_on_commit_callbacks() as nudges:
        answer = program.post("instances?dry_run=true", {**ORDER, "gpus": 2, "replicas": 3})
    assert (answer.status_code, every_row(), nudges) == (200, before, [])
    quote = answer.json()
    assert (quote["would_rent"], quote["gpus"]) == (True, 6)
    assert quote["per_hour"] == quote["first_hour_hold"] == {"amount": "14.940000", "currency": "USD"}


def nothing_free(acme: Organization) -> None:
    Node.objects.update(state="cordoned")


def no_quota(acme: Organization) -> None:
    Quota.objects.update(limit=0)


def no_funds(acme: Organization) -> None:
    Account.objects.filter(organization=acme, kind="promo").update(balance_micros=2 * 2_490_000 - 1)


@pytest.mark.parametrize(
    ("spoil", "order", "status", "code"),
    [
        (nothing_free, {}, 409, "no_capacity"),
        (no_quota, {}, 409, "quota_exceeded"),
        (no_funds, {}, 402, "insufficient_funds"),
        (None, {"gpus": 9}, 422, "invalid_request"),
        (None, {"offer": "none"}, 404, "not_found"),
        (None, {"name": "taken"}, 409, "conflict"),
    ],
)
def test_a_dry_run_refuses_what_the_order_would_be_refused_for_in_the_same_words(
    program: Program, acme: Organization, spoil: Any, order: dict[str, Any], status: int, code: str
) -> None:
    program.rent(key="first", name="taken")
    if spoil:
        spoil(acme)
    before = every_row()
    rehearsed = problem_of(program.post("instances?dry_run=true", ORDER | order), status, code)
    assert every_row() == before
    refused = problem_of(program.post("instances", ORDER | order, key="second"), status, code)
    # What a real order was refused for by placement can be asked for later.
    kept = {"provisioning_placementdecision"} if refused.pop("placement", None) else set()
    after = every_row()
    assert {table for table in after if after[table] != before[table]} == kept
    assert {**rehearsed, "request_id": ""} == {**refused, "request_id": ""}


def test_the_last_micro_unit_of_credit_is_enough(program: Program, acme: Organization) -> None:
    Account.objects.filter(organization=acme, kind="promo").update(balance_micros=2_490_000)
    assert program.rent(key="1").status_code == 202
    document = problem_of(program.rent(key="2"), 402, "insufficient_funds")
    assert "$2.49" in document["detail"]


def test_a_refusal_for_want_of_gpus_says_when_to_come_back(program: Program) -> None:
    nothing_free(Organization())
    answer = program.rent()
    assert (problem_of(answer, 409, "no_capacity")["retry"], answer.headers["Retry-After"]) == ("after", "5")
    assert not GpuHold.objects.exists()


# Where it goes.


def test_a_token_of_one_project_sees_and_rents_in_that_one_only(
    program: Program, acme: Organization, alice: User, project: Project
) -> None:
    other = program.post("projects", {"name": "other"}).json()
    elsewhere = program.rent(key="1", project=project.public_id).json()
    secret = program.post(
        "tokens", {"name": "narrow", "scopes": ["read", "rent", "manage"], "project": other["id"]}
    ).json()["secret"]
    narrow = Program(secret)
    assert narrow.rent(key="2").json()["project"]["id"] == other["id"]
    problem_of(narrow.rent(key="3", project=project.public_id), 404, "not_found", names="/project")
    problem_of(narrow.get(f"instances/{elsewhere['id']}"), 404, "not_found")
    assert [row["id"] for row in narrow.get("projects").json()["data"]] == [other["id"]]
    assert len(narrow.get("instances").json()["data"]) == 1
    for method, path, body in (
        ("post", "invitations", {"email": "a@b.example", "role": "owner"}),
        ("post", "projects", {"name": "third"}),
        ("patch", f"organizations/{acme.public_id}", {"name": "Mine"}),
        ("get", "audit", None),
    ):
        problem_of(narrow.ask(method, path, body), 403, "permission_denied")
    assert [row["name"] for row in narrow.get("tokens").json()["data"]] == ["narrow"]
    made = narrow.post("tokens", {"name": "narrower", "scopes": ["read"]}).json()
    assert made["project"] == other["id"]


def test_a_role_that_changes_changes_at_once(program: Program, acme: Organization) -> None:
    developer = make_member(acme, "dev@acme.example", Role.DEVELOPER)
    theirs = Program(make_token(developer, acme))
    assert theirs.rent(key="1").status_code == 202
    member = next(row for row in program.get("memberships").json()["data"] if row["email"] == developer.email)
    program.ask("patch", f"memberships/{member['id']}", {"role": "viewer"})
    problem_of(theirs.rent(key="2"), 403, "permission_denied")
    problem_of(theirs.rent(key="1"), 403, "permission_denied")
    assert theirs.get("instances").status_code == 200
    program.ask("delete", f"memberships/{member['id']}")
    problem_of(theirs.get("instances"), 401, "not_authenticated")


def test_a_token_cannot_make_one_that_may_more(alice: User, acme: Organization) -> None:
    narrow = Program(make_token(alice, acme, scopes=("manage",)))
    document = problem_of(narrow.post("tokens", {"name": "t", "scopes": ["rent"]}), 422, "invalid_request")
    assert document["errors"][0]["pointer"] == "/scopes"
    assert narrow.post("tokens", {"name": "t", "scopes": ["manage"]}).status_code == 201


# Lists.


def pages(program: Program, path: str, *, between: Any = lambda: None) -> list[list[str]]:
    found, cursor = [], ""
    while cursor is not None:
        page = program.get(f"{path}{'&' if '?' in path else '?'}limit=2&cursor={cursor}").json()
        found.append([row["id"] for row in page["data"]])
        cursor = page["next_cursor"]
        between()
    return found


def test_pages_neither_skip_nor_repeat_while_rows_come(program: Program, project: Project, actor: Any) -> None:
    made: list[str] = []

    def make() -> None:
        key = tokens.add_ssh_key(
            actor=actor, project=project, name=f"k{len(made)}", public_key=ssh_key(str(len(made)).encode())
        )
        made.append(key.public_id)

    for _ in range(5):
        make()
    first_five = list(reversed(made))
    found = pages(program, "ssh-keys", between=make)
    assert [row for page in found for row in page] == first_five
    assert [len(page) for page in found] == [2, 2, 1]


def test_a_page_that_is_exactly_full_is_the_last(program: Program) -> None:
    program.post("projects", {"name": "second"})
    assert [len(page) for page in pages(program, "projects")] == [2]


def test_offers_come_cheapest_first_page_by_page(program: Program, fleet: Fleet) -> None:
    page = program.get("offers?limit=1").json()
    assert [row["slug"] for row in page["data"]] == ["l40s-narvik"]
    rest = program.get(f"offers?limit=1&cursor={page['next_cursor']}").json()
    assert ([row["slug"] for row in rest["data"]], rest["next_cursor"]) == (["h200-narvik"], None)


def test_offers_are_found_by_model_country_and_what_is_free(program: Program) -> None:
    def slugs(query: str) -> list[str]:
        return [row["slug"] for row in program.get(f"offers?{query}").json()["data"]]

    assert slugs("gpu_model=h200") == ["h200-narvik"]
    assert slugs("country=no") == ["l40s-narvik", "h200-narvik"]
    assert slugs("country=JP") == []
    assert slugs("min_gpus=9") == ["h200-narvik"]
    nothing_free(Organization())
    assert slugs("available=true") == []
    assert slugs("available=false") == ["l40s-narvik", "h200-narvik"]


def test_offers_say_which_are_sold_by_auction_in_ones_own_currency(program: Program, fleet: Fleet) -> None:
    def auctioned() -> list[str]:
        return [row["slug"] for row in program.get("offers").json()["data"] if row["by_auction"]]

    def sell(**terms: Any) -> None:
        spot_terms.set_terms(
            offer=fleet.h200, by="carol@operator.example", at=timezone.now(),
            **{"reserve_micros": 500_000, "interval_s": 60, "min_notice_s": 30} | terms,
        )  # fmt: skip

    assert auctioned() == []
    sell()
    assert (auctioned(), program.get("offers/h200-narvik").json()["by_auction"]) == (["h200-narvik"], True)
    sell(is_enabled=False)
    assert auctioned() == []
    sell(is_enabled=True)
    SpotTerms.objects.update(currency="EUR")
    assert auctioned() == []


def test_usage_is_found_by_time_and_instance(program: Program, running: Instance) -> None:
    now = timezone.now()

    def count(**query: str) -> int:
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        return len(program.get(f"usage?{asked}").json()["data"])

    def moment(days: int) -> str:
        return (now + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")

    assert count(instance=running.public_id) == 1
    assert count(instance="ins_other") == 0
    assert (count(until=moment(-1)), count(until=moment(1)), count(since=moment(1))) == (0, 1, 1)


def test_a_token_says_whom_it_speaks_for(program: Program, alice: User, acme: Organization, project: Project) -> None:
    me = program.get("me").json()
    assert me["user"]["email"] == alice.email
    assert me["organization"] == {"id": acme.public_id, "name": "Acme", "currency": "USD"}
    assert me["projects"] == [{"id": project.public_id, "name": "default", "role": "owner", "suspended": False}]
    assert me["token"]["scopes"] == ["manage", "read", "rent"]


def test_a_key_that_another_project_used_is_refused_and_never_answered_with_its_instance(
    alice: User, acme: Organization, project: Project, fleet: Fleet
) -> None:
    other = tenants.create_project(actor=person(alice), organization=acme, name="other")
    answers = []
    for home in (project, other):
        _, secret = tokens.create_token(
            actor=person(alice), organization=acme, name="ci", scopes=["read", "rent"], project=home, at=timezone.now()
        )
        answers.append(Program(secret).rent("deploy-1", name="deployed"))
    assert answers[0].status_code == 202
    problem_of(answers[1], 422, "idempotency_key_reused")


def test_an_order_that_could_be_for_several_projects_is_refused(
    program: Program, alice: User, acme: Organization, fleet: Fleet
) -> None:
    tenants.create_project(actor=person(alice), organization=acme, name="other")
    problem_of(program.rent(), 422, "invalid_request", names="/project")
