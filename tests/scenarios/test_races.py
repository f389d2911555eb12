"""Two customers, workers or messages at the same moment; each guard has a twin test that shows the race without it."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import sleep
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from billing import books, holds
from marketplace import rentals, tenants
from marketplace.access import person
from marketplace.models import Organization, Project, User
from provisioning import engine, placement, quotas, shards, taking
from provisioning.errors import NoCapacity, QuotaExceeded
from provisioning.models import Assignment, GpuHold, Instance, InstanceEvent, Node, Quota, Workflow
from provisioning.steps import PLAN, STEPS
from tests.billing.makers import at_the_same_moment, behind, gate, meeting
from tests.conftest import Fleet, Rent, Run, make_organization, make_person, order
from tests.nodes import wiped

pytestmark = pytest.mark.django_db(transaction=True)

HOUR_OF_H200 = 2_490_000
Meet = Callable[[], None]


@pytest.fixture(autouse=True)
def _nothing_is_held_twice(transactional_db: None, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "without" not in request.node.name:
        assert books.check(at=timezone.now()) == []
        live = GpuHold.objects.filter(released_at=None)
        assert live.count() == live.values("gpu").distinct().count()
        for node in Node.objects.all():
            assert node.free_gpus == node.gpu_count - live.filter(gpu__node=node).count()


@pytest.fixture
def meet() -> Meet:
    """Wait until the other thread got here too, once; go on alone after a moment if a guard keeps it away."""
    return meeting(patience_s=0.5)


@pytest.fixture
def meet_surely() -> Meet:
    """Wait until the other thread got here too, which nothing keeps it from, however slow the machine is."""
    return meeting(patience_s=20)


def meet_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, meet: Meet) -> None:
    original = getattr(owner, name)

    def then_meet(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        meet()
        return result

    monkeypatch.setattr(owner, name, then_meet)


def meet_before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, meet: Meet) -> None:
    original = getattr(owner, name)

    def meet_first(*args: Any, **kwargs: Any) -> Any:
        meet()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, meet_first)


@pytest.fixture(autouse=True)
def _threads_know_as_little_of_each_other_as_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = dict[Any, shards.LiveShard]()

    def own(offer_id: int) -> shards.LiveShard:
        return made.setdefault((threading.get_ident(), offer_id), shards.LiveShard(offer_id))

    monkeypatch.setattr(shards, "of", own)


def customer(name: str, fleet: Fleet) -> Callable[..., Instance]:
    """Return how this new customer, who has funds and quota for anything, rents H200s."""
    user = make_person(f"{name}@example.com")
    project = Project.objects.select_related("organization").get(organization=make_organization(name, user))
    quotas.set_limit(project_id=project.pk, limit=100)
    quotas.set_limit(organization_id=project.organization_id, limit=100)

    def rent(**overrides: Any) -> Instance:
        return rentals.rent(
            actor=person(user), project=project, order=order(fleet.h200, **overrides), at=timezone.now()
        )

    return rent


def take_all_but(count: int, fleet: Fleet) -> None:
    early = customer("early", fleet)
    early(gpus=8)
    early(gpus=8 - count)


def two_who_want_a_gpu(fleet: Fleet, *, free: int) -> list[Callable[[], Instance]]:
    take_all_but(free, fleet)
    return [customer(name, fleet) for name in ("one", "other")]


def test_the_last_gpu_goes_to_one_of_two(monkeypatch: pytest.MonkeyPatch, meet: Meet, fleet: Fleet) -> None:
    both = two_who_want_a_gpu(fleet, free=1)
    meet_before(monkeypatch, placement, "_commit", meet)
    assert at_the_same_moment(*both) == ["NoCapacity", "done"]


def test_the_last_two_gpus_of_a_node_go_to_two(monkeypatch: pytest.MonkeyPatch, meet: Meet, fleet: Fleet) -> None:
    both = two_who_want_a_gpu(fleet, free=2)
    meet_before(monkeypatch, placement, "_commit", meet)
    assert at_the_same_moment(*both) == ["done", "done"]


def test_without_the_lock_both_choose_the_last_gpu_and_only_the_count_refuses_the_second(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet
) -> None:
    both = two_who_want_a_gpu(fleet, free=1)
    for name in ("TAKE_ALL", "TAKE_ONE_NOW"):
        monkeypatch.setattr(taking, name, re.sub("FOR NO KEY UPDATE.*\n", "\n", getattr(taking, name)))
    assert behind(Node.objects.filter(offer=fleet.h200), *both) == ["IntegrityError", "done"]


def test_without_a_second_statement_both_pick_the_same_gpu_and_only_the_index_refuses_it(
    fleet: Fleet, rent: Rent
) -> None:
    assignment = rent(gpus=8).assignments.get()
    free = Node.objects.filter(offer=fleet.h200, free_gpus=8)
    node = free.get()

    def claim_in_one_statement() -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                """
                WITH node AS (
                    SELECT id FROM provisioning_node WHERE id = %s FOR NO KEY UPDATE
                ), gpu AS (
                    SELECT gpu.id FROM provisioning_gpu gpu JOIN node ON node_id = node.id
                    WHERE NOT EXISTS (SELECT FROM provisioning_gpuhold WHERE gpu_id = gpu.id AND released_at IS NULL)
                    ORDER BY index LIMIT 1
                )
                INSERT INTO provisioning_gpuhold (gpu_id, assignment_id, taken_at) SELECT id, %s, now() FROM gpu
                """,
                [node.pk, assignment.pk],
            )

    assert behind(free, claim_in_one_statement, claim_in_one_statement) == ["IntegrityError", "done"]


def test_two_gangs_that_want_the_same_nodes_do_not_deadlock(
    monkeypatch: pytest.MonkeyPatch, meet: Meet, fleet: Fleet
) -> None:
    one, other = customer("one", fleet), customer("other", fleet)
    meet_before(monkeypatch, placement, "_commit", meet)
    assert at_the_same_moment(lambda: one(replicas=2, gpus=5), lambda: other(replicas=2, gpus=5)) == [
        "NoCapacity",
        "done",
    ]


def overtaken(monkeypatch: pytest.MonkeyPatch, between: Callable[[list[int], int], object]) -> None:
    """Let something happen after nodes were chosen and before they are locked; it is told which, and how often yet."""
    real, seen = placement._commit, list[list[int]]()

    def commit(asked: Any, choices: Any, told: Any, *, waits: bool) -> list[Assignment]:
        if threading.current_thread() is ours:
            seen.append([node_id for node_id, _ in choices[0].places])
            between(seen[-1], len(seen))
        return real(asked, choices, told, waits=waits)

    ours = threading.current_thread()
    monkeypatch.setattr(placement, "_commit", commit)


def test_a_gang_that_was_overtaken_chooses_again(monkeypatch: pytest.MonkeyPatch, fleet: Fleet) -> None:
    one, other, outcomes = customer("one", fleet), customer("other", fleet), list[list[str]]()
    overtaken(
        monkeypatch,
        lambda places, times: outcomes.append(at_the_same_moment(lambda: other(gpus=3))) if times == 1 else None,
    )
    instance = one(replicas=3, gpus=4)
    assert outcomes == [["done"]]
    assert instance.assignments.count() == 3


def test_a_node_that_was_cordoned_after_it_was_chosen_is_not_used(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet
) -> None:
    one = customer("one", fleet)

    def cordon(places: list[int], times: int) -> None:
        at_the_same_moment(lambda: Node.objects.filter(pk=places[0]).update(state=Node.State.CORDONED))

    overtaken(monkeypatch, cordon)
    with pytest.raises(NoCapacity):
        one(replicas=2, gpus=5)


def test_a_gang_that_was_overtaken_gives_its_locks_back_before_it_chooses_again(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet
) -> None:
    one, other, outcomes = customer("one", fleet), customer("other", fleet), list[list[str]]()

    def lock_all() -> None:
        with transaction.atomic():
            list(Node.objects.select_for_update(nowait=True))

    overtaken(
        monkeypatch,
        lambda places, times: outcomes.append(at_the_same_moment(lambda: other(gpus=3) if times == 1 else lock_all())),
    )
    one(replicas=3, gpus=4)
    assert outcomes == [["done"], ["done"]]


def test_who_is_overtaken_each_time_is_told_so(monkeypatch: pytest.MonkeyPatch, fleet: Fleet) -> None:
    one = customer("one", fleet)

    def turn(places: list[int], times: int) -> None:
        """Let those GPUs be free of which none was chosen."""
        free = 0b00001111 if times % 2 == 0 else 0b11110000
        at_the_same_moment(lambda: Node.objects.update(free_mask=free))

    at_the_same_moment(lambda: Node.objects.update(free_mask=0b00001111))
    overtaken(monkeypatch, turn)
    with pytest.raises(NoCapacity, match="Others were quicker 3 times"):
        one(gpus=2)
    Node.objects.update(free_mask=0b11111111)


def test_nobody_waits_for_a_node_that_another_claims_while_there_is_a_free_one(fleet: Fleet) -> None:
    one = customer("one", fleet)
    with transaction.atomic():
        best_fit = Node.objects.select_for_update().filter(offer=fleet.h200).order_by("free_gpus", "pk").first()

        def rent_within_a_second() -> None:
            with transaction.atomic():
                with connection.cursor() as cursor:
                    cursor.execute("SET LOCAL lock_timeout = '1s'")
                one()

        assert at_the_same_moment(rent_within_a_second) == ["done"]
    assert best_fit is not None
    assert Assignment.objects.get().node_id != best_fit.pk


def release_while_another_claims(monkeypatch: pytest.MonkeyPatch, running: Instance, fleet: Fleet) -> tuple[int, int]:
    """Return what the node counts as free, and what is."""
    one = customer("one", fleet)
    real, has_taken = placement._take, threading.Event()

    def take_slowly(*args: Any) -> Any:
        taken = real(*args)
        has_taken.set()
        sleep(0.5)
        return taken

    def release() -> None:
        assert has_taken.wait(timeout=10)
        wiped(running)
        with transaction.atomic():
            placement.release(instance=running, at=timezone.now())

    monkeypatch.setattr(placement, "_take", take_slowly)
    assert at_the_same_moment(one, release) == ["done", "done"]
    node = Node.objects.get(assignments__instance=running)
    return node.free_gpus, node.gpu_count - GpuHold.objects.filter(gpu__node=node, released_at=None).count()


def test_gpus_given_back_beside_a_claim_are_counted_after_it(
    monkeypatch: pytest.MonkeyPatch, running: Instance, fleet: Fleet
) -> None:
    assert release_while_another_claims(monkeypatch, running, fleet) == (7, 7)


def test_without_the_lock_gpus_given_back_beside_a_claim_are_counted_before_it(
    monkeypatch: pytest.MonkeyPatch, running: Instance, fleet: Fleet
) -> None:
    monkeypatch.setattr(placement, "lock", lambda node_ids: [])
    assert release_while_another_claims(monkeypatch, running, fleet) == (8, 7)


def test_without_a_check_under_the_lock_an_overtaken_gang_takes_what_another_has(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet
) -> None:
    one, other = customer("one", fleet), customer("other", fleet)
    unchecked = taking.TAKE_ALL.replace("AND node.free_mask & wanted.mask = wanted.mask", "")
    overtaken(monkeypatch, lambda places, times: at_the_same_moment(lambda: other(gpus=6)))
    monkeypatch.setattr(taking, "TAKE_ALL", unchecked)
    with pytest.raises(IntegrityError, match="gpu_held_by_one_at_a_time"):
        one(replicas=2, gpus=5)


def two_launches_with_quota_for_one(rent: Rent, project: Project) -> list[str]:
    quotas.set_limit(project_id=project.pk, limit=1)
    return at_the_same_moment(rent, rent)


def test_the_last_unit_of_quota_is_held_once(
    monkeypatch: pytest.MonkeyPatch, meet: Meet, rent: Rent, project: Project
) -> None:
    meet_after(monkeypatch, quotas, "take", meet)
    assert two_launches_with_quota_for_one(rent, project) == ["QuotaExceeded", "done"]
    assert Quota.objects.get(project=project).held == 1


def test_without_the_guarded_update_two_launches_share_the_last_unit_of_quota(
    monkeypatch: pytest.MonkeyPatch, meet_surely: Meet, rent: Rent, project: Project
) -> None:
    def look_then_write(*, project_id: int, gpus: int, **_: Any) -> None:
        quota = Quota.objects.get(project_id=project_id)
        if quota.held + gpus > quota.limit:
            raise QuotaExceeded(wanted=gpus, held=quota.held, limit=quota.limit)
        meet_surely()
        quota.held += gpus
        quota.save()

    monkeypatch.setattr(quotas, "take", look_then_write)
    assert two_launches_with_quota_for_one(rent, project) == ["done", "done"]
    assert Quota.objects.get(project=project).held == 1
    assert Instance.objects.count() == 2


def two_launches_with_funds_for_one(monkeypatch: pytest.MonkeyPatch, fleet: Fleet) -> list[str]:
    user = make_person("poor@example.com")
    organization = make_organization("Poor", user, credit_micros=HOUR_OF_H200)
    # Without quotas, whose locks come first: the organization's would make one wait for the other.
    monkeypatch.setattr(quotas, "take", lambda **_: None)
    projects = [organization.projects.get(), second_project(user, organization)]

    def launch(project: Project) -> Callable[[], object]:
        return lambda: rentals.rent(actor=person(user), project=project, order=order(fleet.h200), at=timezone.now())

    return behind(gate(organization), *(launch(project) for project in projects))


def second_project(user: User, organization: Organization) -> Project:
    return tenants.create_project(actor=person(user), organization=organization, name="second")


def test_funds_for_one_first_hour_start_one_of_two_launches(monkeypatch: pytest.MonkeyPatch, fleet: Fleet) -> None:
    assert two_launches_with_funds_for_one(monkeypatch, fleet) == ["InsufficientFunds", "done"]


def test_without_the_lock_both_launches_see_the_funds_and_only_the_account_refuses_the_second(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet
) -> None:
    monkeypatch.setattr(holds, "PLACE", holds.PLACE.replace("FOR NO KEY UPDATE", ""))
    assert two_launches_with_funds_for_one(monkeypatch, fleet) == ["IntegrityError", "done"]


def stop_while_a_worker_verifies(
    monkeypatch: pytest.MonkeyPatch, rent: Rent, run_until_idle: Run, fleet: Fleet
) -> Instance:
    """Stop an instance after a worker has looked at its nodes and before it writes down that it runs."""
    instance = rent()
    looked, stopped = threading.Event(), threading.Event()
    real = STEPS["verify"]

    def slow(row: Instance) -> engine.Outcome:
        outcome = real(row)
        looked.set()
        assert stopped.wait(timeout=10)
        return outcome

    for _ in range(10):
        fleet.sync()
        if Workflow.objects.get(pk=instance.pk).step == "verify":
            break
        engine.run_one(instance.pk, PLAN)
    monkeypatch.setitem(STEPS, "verify", slow)

    def stop() -> None:
        assert looked.wait(timeout=10)
        rentals.stop(actor=person(User.objects.get(email="alice@acme.example")), instance=fresh(instance),
                     at=timezone.now())  # fmt: skip
        stopped.set()

    assert at_the_same_moment(stop, lambda: engine.run_one(instance.pk, PLAN)) == ["done", "done"]
    monkeypatch.setitem(STEPS, "verify", real)
    return instance


def fresh(instance: Instance) -> Instance:
    return Instance.objects.select_related("project__organization").get(pk=instance.pk)


def test_a_stop_wins_over_a_worker_in_flight(
    monkeypatch: pytest.MonkeyPatch, rent: Rent, run_until_idle: Run, fleet: Fleet
) -> None:
    instance = stop_while_a_worker_verifies(monkeypatch, rent, run_until_idle, fleet)
    run_until_idle()
    assert fresh(instance).phase == "stopped"
    assert not GpuHold.objects.filter(released_at=None).exists()


def test_without_sending_the_workflow_elsewhere_the_worker_in_flight_is_not_told(
    monkeypatch: pytest.MonkeyPatch, rent: Rent, run_until_idle: Run, fleet: Fleet
) -> None:
    wake = engine.wake
    monkeypatch.setattr(engine, "wake", lambda instance_id, step=None: wake(instance_id))
    instance = stop_while_a_worker_verifies(monkeypatch, rent, run_until_idle, fleet)
    # The move itself is guarded too, so no meter opened; but the step never changed and nothing tears it down.
    workflow = Workflow.objects.get(pk=instance.pk)
    assert (workflow.step, fresh(instance).phase) == ("verify", "stopping")
    assert workflow.last_error.startswith("StaleInstance")


def two_workers_place(monkeypatch: pytest.MonkeyPatch, meet: Meet, rent: Rent) -> int:
    """Return how often the step ran."""
    instance = rent()
    ran = []
    real = STEPS["place"]

    def counted(row: Instance) -> engine.Outcome:
        ran.append(row.pk)
        meet()
        return real(row)

    monkeypatch.setitem(STEPS, "place", counted)

    def come_while_it_runs() -> None:
        while not ran:
            sleep(0.01)
        engine.run_one(instance.pk, PLAN)

    outcomes = at_the_same_moment(lambda: engine.run_one(instance.pk, PLAN), come_while_it_runs)
    assert outcomes == ["done", "done"]
    return len(ran)


def test_two_workers_do_not_run_one_step_twice(monkeypatch: pytest.MonkeyPatch, meet: Meet, rent: Rent) -> None:
    assert two_workers_place(monkeypatch, meet, rent) == 1


def test_without_a_lease_both_workers_run_the_step_and_one_outcome_counts(
    monkeypatch: pytest.MonkeyPatch, meet_surely: Meet, rent: Rent
) -> None:
    monkeypatch.setattr(engine, "LEASE", -engine.LEASE)
    assert two_workers_place(monkeypatch, meet_surely, rent) == 2
    assert InstanceEvent.objects.filter(new_phase="placing").count() == 1


def two_launches_of_one_name(monkeypatch: pytest.MonkeyPatch, rent: Rent) -> list[str]:
    return at_the_same_moment(*[lambda: rent(name="trainer")] * 2)


def test_a_name_is_taken_once(monkeypatch: pytest.MonkeyPatch, rent: Rent) -> None:
    assert two_launches_of_one_name(monkeypatch, rent) == ["Conflict", "done"]


def test_without_the_constraint_two_instances_share_a_name(monkeypatch: pytest.MonkeyPatch, rent: Rent) -> None:
    with without_constraint(Instance, "instance_name_once_per_project"):
        assert two_launches_of_one_name(monkeypatch, rent) == ["done", "done"]
        Instance.objects.filter(pk=Instance.objects.latest("pk").pk).update(name="other")


@contextmanager
def without_constraint(model: type[Any], name: str) -> Iterator[None]:
    constraint = next(constraint for constraint in model._meta.constraints if constraint.name == name)
    with connection.schema_editor() as editor:
        editor.remove_constraint(model, constraint)
    try:
        yield
    finally:
        with connection.schema_editor() as editor:
            editor.add_constraint(model, constraint)
