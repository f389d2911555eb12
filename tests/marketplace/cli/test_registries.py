"""`gpumarket registry`: passwords come in unseen and never go out again."""

import io

import pytest

from marketplace.cli import registries
from tests.marketplace.cli.test_help import REFERENCE


@pytest.fixture
def piped(monkeypatch):
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_a_password_is_read_from_stdin_and_shown_nowhere(gpumarket, shop, piped):
    piped("opens it\n")
    said = gpumarket(
        "registry", "add", "registry.example.com", "--username", "bot", "--project", "serving", "--explain"
    )
    assert said.code == 0
    assert "can be pulled as bot" in said.err
    assert "opens it" not in said.out + said.err
    assert '"password": "***"' in said.err
    assert shop.registries[0]["password"] == "opens it"
    assert shop.registries[0]["project"] == "prj_2"
    listed = gpumarket("registry", "ls")
    assert "registry.example.com" in listed.out
    assert "never" in listed.out
    assert "opens it" not in listed.out


def test_without_a_password_nothing_is_asked(gpumarket, shop, piped):
    piped("")
    said = gpumarket("registry", "add", "registry.example.com", "--username", "bot")
    assert said.code == 2
    assert "no password on stdin" in said.err
    assert not shop.asked("POST", "/api/v1/registries")


def test_a_password_is_no_option(gpumarket):
    said = gpumarket("registry", "add", "registry.example.com", "--username", "bot", "--password", "x")
    assert said.code == 2


def test_a_registry_is_removed_by_its_host_or_told_missing(gpumarket, shop, piped):
    piped("opens it\n")
    gpumarket("registry", "add", "registry.example.com", "--username", "bot")
    assert gpumarket("registry", "rm", "other.example.com").code == 4
    assert gpumarket("registry", "rm", "Registry.example.com", "--json").json["id"] == "reg_1"
    assert shop.registries == []
    assert "public images need none" in gpumarket("registry", "ls").err


@pytest.mark.parametrize("command", ["ls", "add", "rm"])
def test_every_command_stands_in_the_reference(command):
    assert command in {found.name for found in registries.app.registered_commands}
    assert f"gpumarket registry {command}" in REFERENCE.read_text()
