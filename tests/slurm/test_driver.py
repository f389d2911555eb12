"""The Slurm driver against real daemons: the barrier, every ending, faults from outside, and who is silent."""

import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from billing.models import UsageSpan
from marketplace import rentals
from marketplace.access import Actor
from provisioning import clusters, nodes
from provisioning.drivers import slurm_job, slurmrest
from provisioning.drivers.slurm import SlurmDriver
from provisioning.drivers.slurmrest import Slurm, gpus_in
from provisioning.errors import OutsideFault
from provisioning.models import Assignment, Cluster, GpuHold, Heartbeat, Instance, LogChunk, Node, SlurmJob, Workflow
from provisioning.secrets import seal
from tests.conftest import Rent
from tests.packages import needs
from tests.slurm.stage import SlurmStage

pytestmark = [pytest.mark.django_db, needs("slurmctld")]


def phase(instance: Instance) -> str:
    instance.refresh_from_db()
    return instance.phase


def only(instance: Instance) -> Assignment:
    return Assignment.objects.select_related("node__slurm").get(instance=instance)


@pytest.fixture
def running(rent: Rent, slurm: SlurmStage) -> Instance:
    instance = rent(offer=slurm.offer, gpus=2)
    slurm.run(lambda: phase(instance) == "running" and only(instance).observed == "running")
    return instance


def test_an_instance_lives_its_whole_life_on_slurm(running: Instance, slurm: SlurmStage, actor: Actor) -> None:
    place = only(running).node.slurm.name
    assert slurm.daemons.queue() == [[only(running).public_id, "RUNNING", place, "gres:gpu:2"]]
    rentals.terminate(actor=actor, instance=running, at=timezone.now())
    slurm.run(lambda: phase(running) == "terminated")
    assert slurm.daemons.queue() == []
    assert not GpuHold.objects.filter(released_at=None).exists()


@pytest.fixture
def at_the_check(rent: Rent, slurm: SlurmStage) -> Instance:
    """An instance whose job stands at its barrier when its cluster falls silent."""
    instance = rent(offer=slurm.offer, gpus=2)
    slurm.run(lambda: only(instance).observed == "prepared")
    Node.objects.filter(pk=only(instance).node_id).update(reachability="unreachable")
    Workflow.objects.update(due_at=timezone.now())
    slurm.turn()
    assert (phase(instance), Workflow.objects.get(pk=instance.pk).step) == ("verifying", "verify")
    return instance


def test_a_start_whose_cluster_falls_silent_waits_and_is_not_charged(at_the_check: Instance, slurm: SlurmStage) -> None:
    long_ago = timezone.now() - timedelta(minutes=5)
    Workflow.objects.update(step_since=long_ago, due_at=timezone.now())
    slurm.turn()
    assert phase(at_the_check) == "verifying"
    assert not UsageSpan.objects.exists()
    Workflow.objects.update(due_at=timezone.now())
    slurm.run(lambda: phase(at_the_check) == "running")  # It answers again.
    Workflow.objects.update(due_at=timezone.now())
    slurm.run(lambda: only(at_the_check).observed == "running")


def test_a_start_that_waits_for_its_cluster_fails_when_its_job_does(at_the_check: Instance, slurm: SlurmStage) -> None:
    Assignment.objects.update(observed="failed", message="Its node failed in Slurm.")
    Workflow.objects.update(due_at=timezone.now())
    slurm.turn()
    assert phase(at_the_check) == "failed"
    assert at_the_check.message == "Its node failed in Slurm."


def test_a_start_waits_for_its_cluster_only_for_so_long(at_the_check: Instance, slurm: SlurmStage) -> None:
    Workflow.objects.update(step_since=timezone.now() - timedelta(minutes=31), due_at=timezone.now())
    slurm.turn()
    assert (phase(at_the_check), at_the_check.reason) == ("failed", "timed_out")


def test_what_it_prints_and_how_it_ends_reach_the_customer(rent: Rent, slurm: SlurmStage) -> None:
    script = 'echo "$WHO has $CUDA_VISIBLE_DEVICES as $RANK of $WORLD_SIZE"; exit 7'
    instance = rent(offer=slurm.offer, gpus=2, command=["sh", "-c", script], env={"WHO": "it's me"})
    slurm.run(lambda: phase(instance) == "stopped")
    assert (instance.reason, instance.exit_code) == ("exited", 7)
    printed = b"".join(bytes(chunk.data) for chunk in LogChunk.objects.order_by("offset"))
    assert printed == b"it's me has 0,1 as 0 of 1\n"
    assert not UsageSpan.objects.get(resource_id=instance.public_id).during.upper_inf


def test_neighbours_share_a_node_in_proportion_to_their_gpus(rent: Rent, slurm: SlurmStage) -> None:
    neighbours = [rent(offer=slurm.offer, gpus=4) for _ in range(2)]
    slurm.run(lambda: {phase(instance) for instance in neighbours} == {"running"})
    assert len({only(instance).node_id for instance in neighbours}) == 1
    assert slurm.daemons.run("squeue", "-h", "-o", "%C %m").split("\n")[:2] == ["31 49000M"] * 2


def test_a_command_that_is_not_there_says_so(rent: Rent, slurm: SlurmStage) -> None:
    instance = rent(offer=slurm.offer, command=["no-such-program"])
    slurm.run(lambda: phase(instance) == "stopped")
    assert instance.exit_code == 127
    assert b"no-such-program" in bytes(LogChunk.objects.get().data)


def test_a_gang_starts_only_when_every_replica_has_its_gpus(rent: Rent, slurm: SlurmStage) -> None:
    instance = rent(offer=slurm.offer, gpus=8, replicas=2, command=["sh", "-c", "echo on; sleep 1000"])
    first, second = Assignment.objects.filter(instance=instance).select_related("node__slurm").order_by("replica")
    assert first.node.rack == second.node.rack
    in_the_way = slurm.daemons.run(
        "sbatch", "--parsable", "-p", "market", "-w", second.node.slurm.name, "--gres=gpu:1", "--chdir=/tmp",
        "-o", "/dev/null", "--wrap", "sleep 1000",
    ).strip()  # fmt: skip
    slurm.until(lambda: [in_the_way] == slurm.daemons.run("squeue", "-h", "-t", "R", "-o", "%i").split())
    slurm.run(lambda: Assignment.objects.get(pk=first.pk).observed == "prepared")
    slurm.run(lambda: Assignment.objects.get(pk=second.pk).message != "")
    assert phase(instance) == "provisioning"
    assert not LogChunk.objects.exists()
    slurm.daemons.run("scancel", in_the_way)
    slurm.run(lambda: LogChunk.objects.count() == 2)
    assert phase(instance) == "running"


@pytest.mark.parametrize(("ending", "said"), [("cancel", "cancelled in Slurm"), ("down", "node failed")])
def test_what_slurm_ends_fails_with_its_reason(running: Instance, slurm: SlurmStage, ending: str, said: str) -> None:
    row = SlurmJob.objects.get()
    place = only(running).node.slurm.name
    if ending == "cancel":
        slurm.daemons.run("scancel", str(row.job_id))
    else:
        slurm.daemons.run("scontrol", "update", f"NodeName={place}", "State=DOWN", "Reason=fan broken")
    slurm.run(lambda: phase(running) == "failed")
    assert said in running.message
    if ending == "down":
        slurm.until(lambda: "fan broken" in "".join(only(running).node.holds.values_list("reason", flat=True)))
        slurm.daemons.run("scontrol", "update", f"NodeName={place}", "State=RESUME")
        slurm.daemons.restart(place)  # a node that was down is heard again when it registers
        slurm.until(lambda: not Node.objects.filter(is_held=True).exists())


def test_spot_is_preempted_with_a_reason(rent: Rent, slurm: SlurmStage) -> None:
    instance = rent(offer=slurm.offer, gpus=8)
    Instance.objects.update(market="spot", admitted_at=timezone.now())
    slurm.run(lambda: phase(instance) == "running" and only(instance).observed == "running")
    assert slurm.daemons.run("squeue", "-h", "-o", "%P").split() == ["spot"]
    stronger = ("--gres=gpu:8", "--chdir=/tmp", "-o", "/dev/null", "--wrap", "sleep 1000")
    slurm.daemons.run("sbatch", "-p", "market", "-w", only(instance).node.slurm.name, *stronger)
    slurm.run(lambda: phase(instance) == "failed")
    assert "preempted" in instance.message


def test_a_submit_that_was_cut_off_is_found_and_not_repeated(
    rent: Rent, slurm: SlurmStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Slurm.submit

    def cut_off(self: Slurm, **order: Any) -> int:
        submit(self, **order)
        raise OutsideFault("the answer was lost")

    monkeypatch.setattr(Slurm, "submit", cut_off)
    assignment = only(rent(offer=slurm.offer))
    with pytest.raises(OutsideFault):
        SlurmDriver().create(assignment)
    SlurmDriver().create(assignment)
    assert SlurmJob.objects.get().job_id is not None
    assert len(slurm.daemons.queue()) == 1


def test_a_submit_that_never_arrived_is_repeated_once_that_is_sure(
    rent: Rent, slurm: SlurmStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assignment = only(rent(offer=slurm.offer))
    with monkeypatch.context() as patched:
        patched.setattr(Slurm, "submit", lambda self, **order: (_ for _ in ()).throw(OutsideFault("cut")))
        with pytest.raises(OutsideFault, match="cut"):
            SlurmDriver().create(assignment)
    with pytest.raises(OutsideFault, match="may yet arrive"):
        SlurmDriver().create(assignment)
    assert SlurmDriver().destroy(assignment) is False
    Assignment.objects.update(desired="prepared")
    SlurmJob.objects.update(attempted_at=timezone.now() - timedelta(minutes=1))
    SlurmDriver().create(assignment)
    assert len(slurm.daemons.queue()) == 1


def test_a_lost_word_to_start_is_said_again(rent: Rent, slurm: SlurmStage, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = rent(offer=slurm.offer, command=["sh", "-c", "echo on; sleep 1000"])
    with monkeypatch.context() as deaf:
        deaf.setattr(Slurm, "signal", lambda self, job_id, name: None)
        slurm.run(lambda: only(instance).desired == "running")
    slurm.run(lambda: only(instance).observed == "running")
    slurm.until(lambda: only(instance).log_bytes == len("on\n"))


def test_a_job_of_ours_that_nobody_wants_is_cancelled_and_strangers_are_left_alone(
    slurm: SlurmStage,
) -> None:
    job = {"partition": "market", "environment": {"PATH": "/bin"}, "current_working_directory": "/tmp"}
    ours = {"name": "asg_late", "comment": f"{slurm_job.mark(slurm.cluster)}1 submitted"}
    with Slurm(slurm.cluster) as rest:
        rest.submit(script="#!/bin/sh\nsleep 1000\n", job=job | ours)
        rest.submit(script="#!/bin/sh\nsleep 1000\n", job=job | {"name": "asg_strange", "comment": "gpumarket slc_x 1"})
    slurm.until(lambda: [name for name, *_ in slurm.daemons.queue()] == ["asg_strange"])


@pytest.mark.parametrize("fault", ["bad token", "no slurmrestd", "no controller", "time-out", "other key"])
def test_a_fault_outside_fails_nothing_and_is_shown(
    running: Instance, slurm: SlurmStage, fault: str, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    good = {"token_sealed": slurm.cluster.token_sealed, "base_url": slurm.daemons.url}
    before = Cluster.objects.get().last_contact
    with socket.create_server(("127.0.0.1", 0)) as mute:
        if fault == "bad token":
            Cluster.objects.update(token_sealed=seal("bad"))
        elif fault == "time-out":
            monkeypatch.setattr(slurmrest, "TIMEOUT_S", 0.2)
            Cluster.objects.update(base_url=f"http://127.0.0.1:{mute.getsockname()[1]}")
        elif fault == "other key":
            settings.SECRET_KEY = "another"
        else:
            monkeypatch.setattr(slurmrest, "TIMEOUT_S", 1)
            slurm.daemons.stop("slurmrestd" if fault == "no slurmrestd" else "slurmctld")
        try:
            for failures in (1, 2):
                assert slurm.look() is False
                assert Cluster.objects.get().failures == failures
        finally:
            if fault == "no slurmrestd":
                slurm.daemons.start("slurmrestd")
            elif fault == "no controller":
                slurm.daemons.start("slurmctld")
                slurm.daemons.wait_for_controller()
    cluster = Cluster.objects.get()
    assert cluster.last_error
    assert cluster.last_contact == before
    assert cluster.due_at > timezone.now() - timedelta(seconds=5)
    assert (phase(running), only(running).observed) == ("running", "running")
    Cluster.objects.update(**good)
    monkeypatch.undo()
    if fault == "other key":
        Cluster.objects.update(token_sealed=seal(slurm.daemons.token()))
    slurm.until(lambda: Cluster.objects.get().failures == 0)
    assert (phase(running), only(running).observed) == ("running", "running")


def test_a_launch_waits_for_a_controller_that_is_away(
    rent: Rent, slurm: SlurmStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.daemons.stop("slurmrestd")
    try:
        instance = rent(offer=slurm.offer)
        slurm.turn()
        instance.workflow.refresh_from_db()
        assert (phase(instance), instance.workflow.step, instance.workflow.failures) == ("placing", "create", 1)
        assert "slurmrestd did not answer" in instance.workflow.last_error
    finally:
        slurm.daemons.start("slurmrestd")
    SlurmJob.objects.update(attempted_at=timezone.now() - timedelta(minutes=1))
    slurm.run(lambda: phase(instance) == "running")


def test_a_silent_cluster_closes_the_meter_at_its_last_proof_and_is_never_taken_as_lost(
    running: Instance, slurm: SlurmStage
) -> None:
    now = timezone.now()
    proof = now.replace(microsecond=now.microsecond // 1000 * 1000)
    Heartbeat.objects.filter(node__driver="slurm").update(last_seen=proof)
    nodes.notice_silence(at=proof + timedelta(seconds=41), limit=100)
    running.refresh_from_db()
    assert running.health == "unreachable"
    assert UsageSpan.objects.get(resource_id=running.public_id).during.upper == proof
    for _ in range(2):
        nodes.notice_silence(at=proof + timedelta(hours=9), limit=100)
    assert set(Node.objects.filter(driver="slurm").values_list("reachability", flat=True)) == {"unreachable"}
    assert only(running).observed == "running"
    Heartbeat.objects.filter(node__driver="slurm").update(last_seen=now)
    slurm.look()
    running.refresh_from_db()
    assert running.health == "healthy"
    spans = UsageSpan.objects.filter(resource_id=running.public_id).order_by("pk")
    assert [span.during.upper_inf for span in spans] == [False, True]


def test_output_is_not_read_through_a_link(slurm: SlurmStage, running: Instance, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the control plane")
    printed = slurm.daemons.log_path / f"{only(running).public_id}.log"
    printed.unlink()
    printed.symlink_to(secret)
    slurm.look()
    assert not LogChunk.objects.exists()


@pytest.mark.parametrize(("told", "state"), [(0, "running"), (2, "running"), (1, "failed")])
def test_a_restarted_controller_that_tells_no_gpus_yet_fails_nothing(told: int, state: str) -> None:
    row = Assignment(desired="running", observed="running", gpu_uuids=["a", "b"])
    job = slurmrest.Job(1, "asg_1", "RUNNING", "", "gpumarket slc_1 1 started", told, 0, None)
    assert clusters.standing(row, job)[0] == state


@pytest.mark.parametrize("before", ["prepared", "running"])
def test_a_job_that_slurm_puts_back_in_its_queue_has_lost_its_node(before: str) -> None:
    row = Assignment(desired="running", observed=before, gpu_uuids=["a"])
    job = slurmrest.Job(1, "asg_1", "PENDING", "BeginTime", "gpumarket slc_1 1 started", 0, 0, None)
    assert clusters.standing(row, job)[0] == "failed"


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [("gpu:h100:8(S:0-1)", 8), ("gpu:4", 4), ("gpu:a:2,gpu:b:2,nic:1", 4), ("", 0), ("nic:gpu:2", 0)],
)
def test_gpus_are_counted_in_slurms_own_words(gres: str, gpus: int) -> None:
    assert gpus_in(gres) == gpus
