"""What those who run on a part that is to be repaired are told."""

from typing import Any

import pytest

from provisioning.health import outlook
from provisioning.models import Instance
from tests.provisioning.health.cast import Heal, repair_of

pytestmark = pytest.mark.django_db


def test_who_runs_on_while_a_node_drains_is_told_why_and_until_when(played: Any, running: Instance, heal: Heal) -> None:
    assert outlook.of([running]) == {}
    played.breaks(1, "lost")
    heal(rounds=2)
    running.refresh_from_db()
    repair = repair_of(played)
    assert outlook.of([running]) == {
        running.pk: outlook.Outlook(
            part="node", node=played.node.name, reason="The GPU has fallen off the bus", since=repair.opened_at,
            ends_at=repair.drain_until, is_node_held=True,
        )
    }  # fmt: skip
    assert repair.drain_until is not None


def test_a_repair_that_waits_for_its_gpu_has_no_end_and_one_of_another_gpu_is_nobodys(
    played: Any, running: Instance, heal: Heal
) -> None:
    played.breaks(0, "row_remap_pending")
    played.breaks(5, "thermal")
    heal(rounds=3)
    running.refresh_from_db()
    found = outlook.of([running])[running.pk]
    assert (found.part, found.ends_at, found.is_node_held) == ("gpu", None, False)
    assert found.reason == "The GPU replaces a row of its memory at its next reset"
