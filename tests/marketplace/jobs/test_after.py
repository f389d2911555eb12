"""Which jobs the end of an instance has looked at: no more than can do something with it."""

import pytest

from marketplace.jobs import running
from marketplace.models import Attempt, Job
from provisioning.models import Instance, Phase
from tests.marketplace.jobs.conftest import Works, latest, states

pytestmark = pytest.mark.django_db


def test_one_look_judges_all_that_ended_so_messages_of_the_others_cost_nothing(works: Works) -> None:
    job = works.one(array=2, outputs=None)
    works.go()
    one, other = works.running(job)
    for attempt in (one, other):
        Instance.objects.filter(pk=attempt.instance_id).update(phase=Phase.STOPPING, reason="exited", exit_code=0)
    assert running.after(one.instance_id) == [job.pk]
    running.work_on(job.pk)
    assert running.after(one.instance_id) == running.after(other.instance_id) == []
    assert states(job) == ["succeeded", "succeeded"]


def test_once_its_gpus_are_given_back_what_waits_for_them_is_looked_at(works: Works) -> None:
    first, second = works.one(array=16, outputs=None), works.one(outputs=None, name="second")
    works.go()
    attempt = works.running(first)[0]
    assert latest(second).why == Job.Why.CAPACITY
    Instance.objects.filter(pk=attempt.instance_id).update(phase=Phase.STOPPING)
    assert running.after(attempt.instance_id) == [first.pk]
    Instance.objects.filter(pk=attempt.instance_id).update(phase=Phase.TERMINATED)
    assert running.after(attempt.instance_id) == [first.pk, second.pk]
    Attempt.objects.filter(pk=attempt.pk).update(state="succeeded", ended_at=attempt.created_at)
    assert running.after(attempt.instance_id) == [second.pk]


def test_what_of_its_own_job_still_waits_is_looked_at_once_it_is_over(works: Works) -> None:
    job = works.one(array=3, parallel=1, outputs=None)
    works.go()
    (attempt,) = works.running(job)
    assert latest(job).why == Job.Why.PARALLEL
    Attempt.objects.filter(pk=attempt.pk).update(state="succeeded", ended_at=attempt.created_at)
    Instance.objects.filter(pk=attempt.instance_id).update(phase=Phase.STOPPING)
    assert running.after(attempt.instance_id) == []
    Instance.objects.filter(pk=attempt.instance_id).update(phase=Phase.TERMINATED)
    assert running.after(attempt.instance_id) == [job.pk]
