"""Which marketplace, and as whom."""

import json
import os
import stat

import pytest

from marketplace.cli.connection import Connection, find_connection, login_path, read_connection, save_login
from marketplace.cli.problems import AUTHENTICATION, USAGE, Problem

SAVED = Connection(url="https://saved.example", token="gm_saved", source="test")


def write_connection(folder, url):
    folder.mkdir()
    (folder / "connection.json").write_text(json.dumps({"url": url, "token": "gm_local"}))


def test_the_environment_comes_first_then_the_login_then_the_folder(tmp_path):
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    write_connection(tmp_path / ".gpumarket", "http://127.0.0.1:8123")
    assert find_connection(home).url == "http://127.0.0.1:8123"
    save_login(SAVED, path=login_path(home))
    assert find_connection(home).url == "https://saved.example"
    asked = home | {"GPUMARKET_URL": "https://asked.example/api/v1/", "GPUMARKET_TOKEN": "gm_asked"}
    assert find_connection(asked).url == "https://asked.example"


def test_the_home_that_is_named_is_the_only_one_looked_at(tmp_path):
    write_connection(tmp_path / ".gpumarket", "http://127.0.0.1:1")
    write_connection(tmp_path / "other", "http://127.0.0.1:2")
    home = {"XDG_CONFIG_HOME": str(tmp_path), "GPUMARKET_HOME": str(tmp_path / "other")}
    assert find_connection(home).url == "http://127.0.0.1:2"


def test_nothing_found_names_the_three_ways(tmp_path):
    with pytest.raises(Problem) as refusal:
        find_connection({"XDG_CONFIG_HOME": str(tmp_path)})
    assert refusal.value.exit_code == AUTHENTICATION
    for way in ("gpumarket login", "GPUMARKET_URL and GPUMARKET_TOKEN", "GPUMARKET_HOME"):
        assert way in refusal.value.document["suggestion"]


@pytest.mark.parametrize("name", ["GPUMARKET_URL", "GPUMARKET_TOKEN"])
def test_half_an_environment_is_never_completed_from_elsewhere(tmp_path, name):
    save_login(SAVED, path=login_path({"XDG_CONFIG_HOME": str(tmp_path)}))
    with pytest.raises(Problem) as refusal:
        find_connection({"XDG_CONFIG_HOME": str(tmp_path), name: "https://x.example"})
    assert f"{name} is set" in refusal.value.document["detail"]


def test_a_login_is_readable_by_its_owner_alone_and_replaces_an_open_one(tmp_path):
    path = tmp_path / "config" / "login.json"
    path.parent.mkdir()
    path.write_text("{}")
    path.chmod(0o644)
    old_mask = os.umask(0)
    try:
        save_login(SAVED, path=path)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_connection(path).token == "gm_saved"
    assert [file.name for file in path.parent.iterdir()] == ["login.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"url": "nonsense", "token": "t"}', '{"url": 5, "token": "t"}'])
def test_a_broken_file_is_refused_with_a_problem(tmp_path, text):
    (tmp_path / "connection.json").write_text(text)
    with pytest.raises(Problem):
        read_connection(tmp_path / "connection.json")


@pytest.mark.parametrize("url", ["", "gpu.example.com", "ftp://gpu.example.com", "https://"])
def test_what_is_no_address_is_refused_as_usage(url):
    with pytest.raises(Problem) as refusal:
        find_connection({"GPUMARKET_URL": url or " ", "GPUMARKET_TOKEN": "gm_x"})
    assert refusal.value.exit_code == USAGE


def test_the_token_is_not_shown_by_accident():
    assert "gm_saved" not in repr(SAVED)
