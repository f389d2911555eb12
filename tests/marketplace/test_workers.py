"""A worker's process keeps its connection to the database from task to task, and gives up one that may be broken."""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from celery.app.trace import trace_task
from celery.fixups.django import DjangoWorkerFixup
from django.db import connection

from marketplace.celery import app
from provisioning import tasks
from provisioning.health import breaker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def worker() -> Iterator[DjangoWorkerFixup]:
    """What Celery itself does with connections in a worker, before and after each task."""
    fixup = DjangoWorkerFixup(app).install()
    yield fixup
    connection.close()


def run(task=tasks.purge_breaker_marks) -> int | None:
    """Run a task as a worker does; return the number of the connection that this process then has, if any."""
    trace_task(task, str(uuid4()), (), {}, request={}, app=app)
    return None if connection.connection is None else connection.connection.info.backend_pid


def test_a_task_finds_the_connection_of_the_one_before():
    assert run() == run() is not None


def test_what_a_failed_task_did_with_its_connection_is_not_known_so_it_goes(monkeypatch):
    def fail(**_: object) -> None:
        connection.ensure_connection()
        raise TimeoutError

    monkeypatch.setattr(breaker, "purge", fail)
    assert run() is None


def test_a_connection_that_the_server_ended_is_replaced():
    before = run()
    with psycopg.connect(connection.connection.info.dsn, password=connection.settings_dict["PASSWORD"]) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [before])
    assert run() not in {before, None}
