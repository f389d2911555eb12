"""The feed of events and webhooks over the API."""

from typing import Any

from django.utils import timezone

from marketplace import tokens
from marketplace.access import person
from marketplace.events import sending
from marketplace.models import Event, Organization, Role, User, WebhookEndpoint
from tests.conftest import Rent, Run, make_member, make_organization, make_person, make_token
from tests.marketplace.api.program import Program, problem_of
from tests.marketplace.events.conftest import Receiver, published, receiver

__all__ = ["receiver"]


def test_the_feed_goes_on_after_the_last_event_seen(rent: Rent, run_until_idle: Run, program: Program) -> None:
    rent()
    run_until_idle()
    published()
    whole = program.get("events?after=first").json()
    assert [event["type"] for event in whole["data"]][:2] == ["instance.queued", "instance.placing"]
    seen, after = [], "first"
    while rows := (answer := program.get(f"events?after={after}&limit=2").json())["data"]:
        assert len(rows) <= 2
        seen, after = seen + rows, answer["last"]
    assert seen == whole["data"]
    assert program.get(f"events?after={after}").json() == {"data": [], "last": after}
    newest = program.get("events?limit=2").json()
    assert newest["data"] == whole["data"][-2:]


def test_types_choose_events(rent: Rent, run_until_idle: Run, program: Program) -> None:
    rent()
    run_until_idle()
    published()
    asked = program.get("events?after=first&type=instance.running,reservation.*").json()["data"]
    assert [event["type"] for event in asked] == ["instance.running"]
    assert len(program.get("events?after=first&type=instance.*").json()["data"]) > 1
    problem_of(program.get("events?type=instance.exploded"), 422, "invalid_request", names="/type")
    problem_of(program.get("events?after=evt_nosuch"), 422, "invalid_request", names="/after")


def test_nobody_sees_events_of_a_kind_that_they_may_not_see(
    rent: Rent, alice: User, acme: Organization, program: Program
) -> None:
    rent()
    published()
    Event.objects.create(
        organization=acme, type="invoice.issued", subject_id="inv_1", at=timezone.now(), source="invoice", row=1
    )
    viewer = Program(make_token(make_member(acme, "v@acme.example", Role.VIEWER), acme))
    _, secret = tokens.create_token(
        actor=person(alice), organization=acme, name="one", scopes=["read"], project=acme.projects.get(),
        at=timezone.now(),
    )  # fmt: skip
    of_project = Program(secret)
    stranger = make_person("s@other.example")
    other = Program(make_token(stranger, make_organization("Other", stranger)))
    types = [
        {event["type"].partition(".")[0] for event in one.get("events?after=first").json()["data"]}
        for one in (program, viewer, of_project, other)
    ]
    assert types == [{"instance", "invoice"}, {"instance"}, {"instance"}, set()]


def test_a_webhook_is_added_tested_rotated_and_removed(program: Program, receiver: Receiver) -> None:
    made = program.post("webhooks", {"url": receiver.url, "types": ["instance.*"], "description": "pager"})
    assert made.status_code == 201
    row = made.json()
    assert row["secret"].startswith("whsec_")
    listed = program.get("webhooks").json()["data"]
    assert listed == [{name: value for name, value in row.items() if name != "secret"}]
    path = f"webhooks/{row['id']}"
    assert program.post(f"{path}/test").status_code == 202
    assert sending.send_due(at=timezone.now()) == 1
    (sent,) = program.get(f"{path}/deliveries").json()["data"]
    assert (sent["type"], sent["state"], sent["attempts"][0]["status"]) == ("webhook.test", "delivered", 204)
    assert program.post(f"webhook-deliveries/{sent['id']}/resend").json()["state"] == "pending"
    fresh = program.post(f"{path}/rotate").json()
    assert fresh["secret"] != row["secret"]
    assert fresh["former_secret_until"]
    changed = program.ask("patch", path, {"enabled": False})
    assert (changed.json()["enabled"], changed.json()["types"]) == (False, ["instance.*"])
    problem_of(program.post(f"{path}/test"), 409, "conflict")
    assert program.ask("delete", path).status_code == 204
    problem_of(program.get(path), 404, "not_found")


def test_a_bad_webhook_says_what_is_wrong_with_it(program: Program) -> None:
    problem_of(program.post("webhooks", {"url": "http://example.com/"}), 422, "invalid_request", names="/url")
    problem_of(program.post("webhooks", {"url": "https://10.0.0.1/"}), 422, "invalid_request", names="/url")
    wrong = {"url": "https://example.com/", "types": ["nosuch"]}
    problem_of(program.post("webhooks", wrong), 422, "invalid_request", names="/types")
    assert WebhookEndpoint.objects.count() == 0


def test_what_was_missed_is_replayed_from_a_moment_on(
    rent: Rent, run_until_idle: Run, program: Program, receiver: Receiver
) -> None:
    rent()
    run_until_idle()
    published()
    path = f"webhooks/{program.post('webhooks', {'url': receiver.url}).json()['id']}"
    since: Any = {"since": "2020-01-01T00:00:00Z"}
    assert program.post(f"{path}/replay", since).json()["events"] == Event.objects.count()
    assert program.post(f"{path}/replay", since).json()["events"] == 0
    problem_of(program.post(f"{path}/replay", {"since": "yesterday"}), 422, "invalid_request", names="/since")
