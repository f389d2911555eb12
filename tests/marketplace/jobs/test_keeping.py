"""Folders of jobs: kept for as long as the job or its claims may need them, and no longer."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from marketplace import tasks
from marketplace.jobs import cancelling, keeping
from marketplace.models import Attempt
from provisioning import artifacts
from provisioning.models import Artifact
from tests.marketplace.jobs.conftest import Works, latest
from tests.nodes import keep_folder

pytestmark = pytest.mark.django_db
MONTH = timedelta(days=31)


def test_folders_are_kept_while_a_job_is_not_over_and_no_longer(works: Works, settings: Any, tmp_path: Path) -> None:
    settings.ARTIFACTS = tmp_path / "store"
    project = works.project.pk
    inputs, outputs = keep_folder(project, {"in.txt": b"in"}), keep_folder(project, {"out.txt": b"out"})
    needed = works.one(inputs=inputs, parallel=1, array=2)
    works.go()
    works.exit_all(needed)
    works.go()
    Attempt.objects.filter(job=needed, state="succeeded").update(outputs_sha256=outputs)
    Artifact.objects.update(used_at=timezone.now() - MONTH)
    at = timezone.now()
    assert list(keeping.due(at=at)) == [needed.pk]
    tasks.keep_folders_of(needed.pk)
    assert artifacts.sweep(at=at, limit=100) == 0
    assert Artifact.objects.filter(used_at__lt=at - MONTH / 2).count() == 0
    cancelling.cancel(actor=works.actor, job=latest(needed), at=at)
    works.go()
    assert latest(needed).state == "cancelled"
    assert list(keeping.due(at=at)) == []
    Artifact.objects.update(used_at=at - MONTH)
    assert artifacts.sweep(at=at, limit=100) == 4


def test_inputs_that_were_used_long_ago_are_in_use_from_when_a_job_is_submitted(
    works: Works, settings: Any, tmp_path: Path
) -> None:
    settings.ARTIFACTS = tmp_path / "store"
    inputs = keep_folder(works.project.pk, {"in.txt": b"in"})
    Artifact.objects.update(used_at=timezone.now() - artifacts.KEPT_UNUSED + timedelta(hours=12))
    works.one(inputs=inputs, needs=[works.one().public_id])
    assert artifacts.sweep(at=timezone.now() + timedelta(hours=13), limit=100) == 0
    assert artifacts.missing(project_id=works.project.pk, sha256s=[inputs]) == []
