"""What a report costs, in questions to the database."""

import pytest

from provisioning.models import Assignment
from tests.conftest import Rent, Run
from tests.nodes import PlayedNode
from tests.provisioning.test_reports import played, questions, said, tell

__all__ = ["played"]

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("instances", [1, 4])
def test_a_busy_report_asks_as_often_however_much_runs_there(
    rent: Rent, run_until_idle: Run, played: PlayedNode, instances: int
) -> None:
    for _ in range(instances):
        rent()
    run_until_idle()
    rows = list(Assignment.objects.all())
    assert questions(lambda: tell(played, assignments=[said(row, "running") for row in rows])) == 4
