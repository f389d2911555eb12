"""A gateway is killed between accepting a sync and answering it: the agent says it again, and nothing happens twice."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.servers.basehttp import WSGIServer
from django.core.wsgi import get_wsgi_application
from django.db import connections
from django.utils import timezone

from billing import books
from billing.models import UsageSpan
from marketplace import rentals
from marketplace.access import Actor
from marketplace.embedded.addresses import free_port
from provisioning import engine, nodes, reports
from provisioning.models import Assignment, GpuHold, Heartbeat, Instance, LogChunk, Node
from provisioning.steps import PLAN
from tests.conftest import Fleet, Rent
from tests.nodes import announce
from tests.scenarios.conftest import ROOT
from tests.scenarios.deaths import _no_nudges, die
from tests.scenarios.play import QuietHandler, wait

__all__ = ["_no_nudges"]


def serve(port: int, *, dies_at: str, when: str) -> int:
    """Start a gateway in a process of its own, which is killed at the first report of a state; return its pid."""
    connections.close_all()  # A connection belongs to one process.
    pid = os.fork()
    if pid == 0:
        try:
            real = reports.take_all

            def take_all(said: Any, *, at: Any) -> Any:
                is_it = any(word.state == dies_at for report in said for word in report.assignments)
                if is_it and when == "accepted":
                    die()
                answers = real(said, at=at)
                if is_it:
                    die()
                return answers

            reports.take_all = take_all
            server = WSGIServer(("127.0.0.1", port), QuietHandler)
            server.set_app(get_wsgi_application())
            server.serve_forever(0.05)
        finally:
            os._exit(3)
    return pid


def turn() -> None:
    for workflow_id in engine.due(limit=10):
        engine.run_one(workflow_id, PLAN)


def is_dead(pid: int) -> bool:
    turn()
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def is_in(instance: Instance, phase: str) -> bool:
    turn()
    instance.refresh_from_db()
    return str(instance.phase) == phase


@pytest.fixture
def port(fleet: Fleet, tmp_path: Path, transactional_db: None) -> Iterator[int]:
    """Where a real agent calls; the nodes that a test plays are out of its way."""
    Node.objects.filter(offer=fleet.h200).update(state=Node.State.CORDONED)
    node = announce(fleet.h200, fleet.nodes["h200-1"].node.fabric, name="real-1", gpus=8)
    port = free_port()
    token = nodes.issue_join_token(node=node, at=timezone.now())
    options = ["--url", f"http://127.0.0.1:{port}", "--home", str(tmp_path / "home"), "--gpus", "simulated:H200:8:1000"]
    with (tmp_path / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "-m", "provisioning.agent.main", *options, "--end-workloads-on-exit"],
            env=os.environ | {"GPUMARKET_JOIN_TOKEN": token}, stderr=log, cwd=ROOT,
        )  # fmt: skip
    yield port
    agent.terminate()
    agent.wait(20)


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_no_nudges")
@pytest.mark.parametrize("when", ["accepted", "written down"])
def test_a_gateway_that_is_killed_with_a_report_loses_and_doubles_nothing(
    rent: Rent, port: int, actor: Actor, tmp_path: Path, when: str
) -> None:
    begun = tmp_path / "begun"
    gateways = [serve(port, dies_at="prepared", when=when)]
    try:
        wait(Heartbeat.objects.filter(node__name="real-1", seq__gt=0).exists, seconds=60, what="a report")
        instance = rent(command=["sh", "-c", f"echo began | tee -a {begun}; sleep 600"])
        wait(lambda: is_dead(gateways[-1]), seconds=60, what="the report that it is prepared")
        gateways.append(serve(port, dies_at="running", when=when))
        wait(lambda: is_dead(gateways[-1]), seconds=60, what="the report that it runs")
        gateways.append(serve(port, dies_at="gone", when=when))
        wait(lambda: is_in(instance, "running"), seconds=60, what="it runs")
        wait(LogChunk.objects.exists, seconds=30, what="its output")
        rentals.terminate(actor=actor, instance=instance, at=timezone.now())
        wait(lambda: is_dead(gateways[-1]), seconds=60, what="the report that it is gone")
        gateways.append(serve(port, dies_at="never", when=when))
        wait(lambda: is_in(instance, "terminated"), seconds=60, what="its end")
    finally:
        if not is_dead(gateways[-1]):
            os.kill(gateways[-1], 9)
            os.waitpid(gateways[-1], 0)
    assert begun.read_text() == "began\n"
    assert b"".join(bytes(chunk.data) for chunk in LogChunk.objects.order_by("offset")) == b"began\n"
    assert Assignment.objects.filter(instance=instance).count() == 1
    assert not GpuHold.objects.filter(released_at=None).exists()
    assert UsageSpan.objects.count() == 1
    assert not UsageSpan.objects.filter(ended_at=None).exists()
    assert books.check(at=timezone.now()) == []
