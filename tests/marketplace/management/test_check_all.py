"""`check_all` is what CI runs, all of it."""

from pathlib import Path

import pytest
from django.core.management import call_command

from marketplace.management.commands import check_all

CI = Path(check_all.ROOT, ".ci", "run")


def test_every_check_runs_even_after_one_that_fails(monkeypatch, tmp_path, capfd):
    checks = [("first", ["false"], {}), ("second", ["sh", "-c", "echo $WORD > ran"], {"WORD": "given"})]
    monkeypatch.setattr(check_all, "ROOT", tmp_path)
    monkeypatch.setattr(check_all, "checks", lambda home: checks)
    with pytest.raises(SystemExit, match="1"):
        call_command("check_all")
    assert (tmp_path / "ran").read_text() == "given\n"
    out = capfd.readouterr().out
    assert "FAILED (1)" in out
    assert "ok" in out


def test_a_tool_that_is_missing_is_a_failure_and_not_the_end(monkeypatch, capfd):
    monkeypatch.setattr(check_all, "checks", lambda home: [("gone", ["/no/such/tool"], {}), ("next", ["true"], {})])
    with pytest.raises(SystemExit, match="1"):
        call_command("check_all")
    assert "next" in capfd.readouterr().out


def test_when_all_is_well_it_ends_well(monkeypatch):
    monkeypatch.setattr(check_all, "checks", lambda home: [("fine", ["true"], {})])
    call_command("check_all")


def test_ci_runs_check_all_and_nothing_beside_it():
    lines = [line for line in CI.read_text().splitlines() if line.startswith(("uv run", "exec"))]
    assert lines == ["exec uv run manage.py check_all"]
