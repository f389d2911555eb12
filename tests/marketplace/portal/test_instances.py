"""Instances in the portal: their steps, cost, log and what can be done with them."""

from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace.models import AuditEntry, Project, User
from provisioning.models import Instance, Phase, Remediation
from provisioning.volumes import Use
from tests.conftest import Fleet, Rent, Run, Storage, make_organization
from tests.marketplace.portal.reading import Page, faults, read


def page_of(client: Client, instance: Instance, name: str = "instance", **headers: str) -> Page:
    answer = client.get(reverse(name, args=[instance.public_id]), headers=headers)
    assert answer.status_code == 200
    return read(answer)


def test_while_it_starts_billing_has_not_started(owner: Client, rent: Rent) -> None:
    page = page_of(owner, rent())
    assert "Billing has not started. You may close this page." in page.text
    assert "Reserve GPUs (under way)" in page.text
    assert "Run (waiting)" in page.text
    assert faults(page) == []


def test_a_running_instance_shows_its_cost_to_the_gpu_millisecond(owner: Client, running: Instance) -> None:
    page = page_of(owner, running)
    assert "The meter is running" in page.text
    assert "GPU-milliseconds" in page.text
    assert "$2.49 per GPU-hour" in page.text
    assert "h200-1" in page.text
    assert faults(page) == []


def test_the_open_page_asks_only_for_what_changes(owner: Client, running: Instance) -> None:
    fragment = page_of(owner, running, **{"HX-Request": "true"})
    assert not fragment.all("html")
    ids = {element.attributes.get("id") for element in fragment.elements}
    assert {"head", "progress", "cost", "events"} <= ids
    assert not fragment.all("pre")


def test_a_failed_start_says_why_what_was_charged_and_what_to_do(
    owner: Client, fleet: Fleet, rent: Rent, run_until_idle: Run
) -> None:
    for node in fleet.nodes.values():
        node.fails_to_prepare = "the disk is full"
    instance = rent()
    run_until_idle()
    page = page_of(owner, instance)
    for words in (
        "It could not be started",
        "The node could not prepare it",
        "the disk is full",
        "Nothing was charged.",
        "Start it again",
        "Reference:",
    ):
        assert words in page.text
    assert page.all("section", role="alert")


def test_output_is_shown_escaped_and_followed_by_its_cursor(
    owner: Client, fleet: Fleet, running: Instance, run_until_idle: Run
) -> None:
    node = next(node for node in fleet.nodes.values() if node.desired)
    node.prints("<script>alert(1)</script>\n")
    fleet.sync()
    page = page_of(owner, running)
    log = page.all("pre", role="log")[0].text
    assert "<script>alert(1)</script>" in log
    assert not [script for script in page.all("script") if "src" not in script.attributes]
    follower = next(span for span in page.all("span") if "cursor=" in span.attributes.get("hx-get", ""))
    assert "alert" not in owner.get(follower.attributes["hx-get"]).content.decode()
    node.prints("second line\n", offset=len("<script>alert(1)</script>\n"))
    fleet.sync()
    assert "second line" in owner.get(follower.attributes["hx-get"]).content.decode()


def test_the_whole_log_can_be_downloaded(owner: Client, fleet: Fleet, running: Instance) -> None:
    node = next(node for node in fleet.nodes.values() if node.desired)
    node.prints("one\ntwo\n")
    fleet.sync()
    answer = owner.get(reverse("instance-log-file", args=[running.public_id]))
    assert b"".join(answer.streaming_content) == b"one\ntwo\n"
    assert "attachment" in answer.headers["Content-Disposition"]


def test_a_cursor_of_ones_own_making_is_refused(owner: Client, running: Instance) -> None:
    answer = owner.get(reverse("instance-log", args=[running.public_id]), {"cursor": "!!"})
    assert answer.status_code == 400
    assert "This place in the log is not known" in read(answer).text


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("stop", ["What is kept", "What is lost", "Charges end the moment you stop it"]),
        ("terminate", ["What is kept", "What is lost", "It cannot be started again."]),
    ],
)
def test_before_it_ends_the_page_says_what_is_kept_and_lost(
    owner: Client, running: Instance, verb: str, words: list[str]
) -> None:
    page = page_of(owner, running, f"instance-{verb}")
    assert all(each in page.text for each in words)
    running.refresh_from_db()
    assert running.phase == "running"


def test_stop_start_and_terminate_from_the_portal(owner: Client, running: Instance, run_until_idle: Run) -> None:
    def do(verb: str) -> str:
        answer = owner.post(reverse(f"instance-{verb}", args=[running.public_id]))
        assert answer.headers["Location"] == reverse("instance", args=[running.public_id])
        run_until_idle()
        running.refresh_from_db()
        return running.phase

    assert [do("stop"), do("start"), do("terminate")] == ["stopped", "running", "terminated"]
    page = page_of(owner, running)
    assert "the node confirmed that nothing is left" in page.text
    assert not page.all("a", id="do-start")
    verbs = AuditEntry.objects.filter(subject_id=running.public_id).order_by("pk").values_list("verb", flat=True)
    assert list(verbs) == ["instance.rent", "instance.stop", "instance.start", "instance.terminate"]


def test_a_page_offers_only_what_can_be_done(owner: Client, viewer: Client, running: Instance) -> None:
    page = page_of(owner, running)
    assert page.all("a", id="do-stop")
    assert not page.all("a", id="do-start")
    assert not page_of(viewer, running).all("a", id="do-stop")


def test_what_cannot_be_done_is_said_and_not_done(owner: Client, running: Instance) -> None:
    assert "This cannot be done now" in page_of(owner, running, "instance-start").text
    answer = owner.post(reverse("instance-start", args=[running.public_id]))
    assert answer.status_code == 409
    assert "Its state does not allow this" in read(answer).text
    assert "Nothing was started, changed or charged." in read(answer).text


def test_a_viewer_stops_nothing(viewer: Client, running: Instance) -> None:
    assert viewer.post(reverse("instance-stop", args=[running.public_id])).status_code == 403
    running.refresh_from_db()
    assert running.phase == "running"


def test_renaming_tells_a_bad_name_beside_it(owner: Client, rent: Rent, running: Instance) -> None:
    rent(name="taken")
    path = reverse("instance-rename", args=[running.public_id])
    for name, words in (("Not A Name", "lower-case letters"), ("taken", "named taken already")):
        page = read(owner.post(path, {"name": name}))
        assert words in page.text
        assert page.value("name") == name
        assert faults(page) == []
    assert owner.post(path, {"name": "better"}).status_code == 302
    running.refresh_from_db()
    assert running.name == "better"


def test_the_list_filters_by_tab_and_project(
    owner: Client, rent: Rent, running: Instance, project: Project, run_until_idle: Run
) -> None:
    owner.post(reverse("projects"), {"name": "second"})
    rent(name="waiting")

    def names(**asked: str) -> set[str]:
        page = read(owner.get(reverse("instances"), asked))
        return {link.text for link in page.all("a", class_="row-name")}

    assert names() == {running.name, "waiting"}
    assert names(show="running") == {running.name, "waiting"}
    assert names(show="failed") == set()
    assert names(project=project.public_id) == {running.name, "waiting"}
    assert names(project="prj_other") == set()
    assert names(show="no such tab") == {running.name, "waiting"}


def test_pages_show_only_the_chosen_organization(owner: Client, alice: User, running: Instance) -> None:
    second = make_organization("Second", alice)
    assert running.name in read(owner.get(reverse("instances"))).text
    owner.post(reverse("organization-choose"), {"organization": second.public_id})
    for name in ("instances", "home", "balance"):
        assert running.name not in read(owner.get(reverse(name))).text
    assert "$0.00/h now" in read(owner.get(reverse("help"))).text


def test_a_long_list_goes_on_where_it_stopped(owner: Client, rent: Rent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketplace.portal.instances.PAGE", 2)
    names = [rent(name=f"n-{number}").name for number in range(3)]
    first = read(owner.get(reverse("instances")))
    assert [link.text for link in first.all("a", class_="row-name")] == names[:0:-1]
    second = owner.get(reverse("instances") + first.all("a", id="older")[0].attributes["href"])
    assert [link.text for link in read(second).all("a", class_="row-name")] == names[:1]


def test_home_names_what_runs_and_what_happened(owner: Client, running: Instance) -> None:
    page = read(owner.get(reverse("home")))
    assert "1 GPU" in page.text
    assert "$2.49/h" in page.text
    assert "At this rate it lasts" in page.text
    assert "Make an API token for the command line" in page.text
    assert page.text.count(running.name) >= 2


def test_a_newcomer_sees_the_first_steps(owner: Client, db: None) -> None:
    page = read(owner.get(reverse("home")))
    assert "Nothing is running, nothing is being charged" in page.text
    assert "$1,000.00 is ready to be used." in page.text
    assert page.all("a", id="first-launch")


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_has_a_sound_page(owner: Client, running: Instance, phase: Phase) -> None:
    Instance.objects.filter(pk=running.pk).update(phase=phase, reason="timed_out", retryable=True)
    page = page_of(owner, running)
    assert faults(page) == []
    assert str(phase.label) in page.text


def test_before_a_stop_it_is_said_which_files_are_lost_and_which_are_kept(
    owner: Client, rent: Rent, run_until_idle: Run, storage: Storage
) -> None:
    bare, kept = rent(name="bare"), rent(name="kept", uses=[Use(storage.make("data"), "/data")])
    run_until_idle()
    Instance.objects.filter(name="bare").update(image="registry.example.com/train:1")
    said = read(owner.get(reverse("instance-stop", args=[bare.public_id]))).text
    assert "It has no volume, so all its files are deleted." in said
    assert "also all of /workspace" in said
    said = read(owner.get(reverse("instance-stop", args=[kept.public_id]))).text
    assert "all its files are deleted" not in said
    assert "Also what is on its volumes, which go on being charged: data /data ." in said
    assert "also all of its working folder" in said
    assert "data /data" in page_of(owner, kept).text


def test_the_page_of_a_degraded_instance_says_why_and_until_when(owner: Client, running: Instance) -> None:
    node, at = running.assignments.get().node, timezone.now()
    Instance.objects.filter(pk=running.pk).update(health="degraded")
    Remediation.objects.create(
        node=node, action="reboot_node", severity=4, rule="lost", table_version="1", state="draining", state_since=at,
        reason="The GPU has fallen off the bus", opened_at=at, drain_until=at + timedelta(hours=1),
    )  # fmt: skip
    page = page_of(owner, running)
    assert faults(page) == []
    until = f"{timezone.localtime(at + timedelta(hours=1)):%Y-%m-%d %H:%M}"
    for words in ("The GPU has fallen off the bus.", f"Its node {node.name} is to be repaired.",
                  f"It may go on until {until} ; then it is ended"):  # fmt: skip
        assert words in page.text, page.text
