"""What the outside tells us is read once, and refused loudly, all faults at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from marketplace.environment import BadEnvironment, Environment, read

ROOT = Path(__file__).resolve().parents[2]
SAFE = {
    "GPUMARKET_MODE": "production",
    "DATABASE_URL": "postgresql://market:secret@db.example/market",
    "REDIS_URL": "rediss://:secret@redis.example:6380/0",
    "GPUMARKET_SECRET_KEY": "vX3k9QmZ7pL2sR8tY4wB6nD1fG5hJ0cA_eU-iOqKzMxNyTbV",
    "GPUMARKET_PUBLIC_URL": "https://gpu.example.org",
    "GPUMARKET_EMAIL_URL": "smtps://user:secret@mail.example:465",
}
SAFE["GPUMARKET_SECRET_KEY"] += "another-few"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def given(home: Path, **values: str) -> Environment:
    return read({"GPUMARKET_HOME": str(home), **values})


def faults(home: Path, **values: str) -> str:
    with pytest.raises(BadEnvironment) as refusal:
        given(home, **values)
    return str(refusal.value)


def test_with_nothing_said_it_is_a_marketplace_on_this_machine(home: Path) -> None:
    found = given(home)
    assert (found.mode, found.is_production, found.log_format) == ("local", False, "console")
    assert found.public_url == "http://127.0.0.1:8000"
    assert found.allowed_hosts == ("127.0.0.1",)


def test_production_with_strong_values_is_served(home: Path) -> None:
    found = given(home, **SAFE)
    assert (found.is_production, found.log_format) == (True, "json")
    assert found.allowed_hosts == ("gpu.example.org",)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("GPUMARKET_MODE", "prod", "GPUMARKET_MODE is 'prod'; it is local or production"),
        ("GPUMARKET_LOG_FORMAT", "xml", "GPUMARKET_LOG_FORMAT is 'xml'"),
        ("GPUMARKET_LOG_LEVEL", "loud", "GPUMARKET_LOG_LEVEL is 'LOUD'"),
        ("DATABASE_URL", "mysql://h/db", "DATABASE_URL is not an address"),
        ("DATABASE_URL", "postgresql://h:port/db", "DATABASE_URL is not an address"),
        ("DATABASE_URL", "postgresql://[h/db", "DATABASE_URL is not an address"),
        ("REDIS_URL", "http://h", "REDIS_URL is not an address"),
        ("REDIS_URL", "redis://h:99999", "REDIS_URL is not an address"),
        ("GPUMARKET_PUBLIC_URL", "gpu.example.org", "GPUMARKET_PUBLIC_URL is 'gpu.example.org'"),
        ("GPUMARKET_PUBLIC_URL", "http://", "GPUMARKET_PUBLIC_URL is"),
        ("GPUMARKET_PUBLIC_URL", "http://gpu.example.org", "set GPUMARKET_MODE=production"),
        ("GPUMARKET_ALLOWED_HOSTS", "localhost,gpu.example.org", "set GPUMARKET_MODE=production"),
        ("GPUMARKET_ALLOWED_HOSTS", "*", "set GPUMARKET_MODE=production"),
    ],
)
def test_each_fault_is_named(home: Path, name: str, value: str, says: str) -> None:
    assert says in faults(home, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GPUMARKET_SECRET_KEY", ""),
        ("GPUMARKET_SECRET_KEY", "short"),
        ("GPUMARKET_SECRET_KEY", "abab" * 20),
        ("GPUMARKET_SECRET_KEY_FALLBACKS", f"{SAFE['GPUMARKET_SECRET_KEY']},weak"),
        ("DATABASE_URL", ""),
        ("REDIS_URL", ""),
        ("GPUMARKET_EMAIL_URL", ""),
        ("GPUMARKET_PUBLIC_URL", "http://gpu.example.org"),
        ("GPUMARKET_ALLOWED_HOSTS", "gpu.example.org,*"),
    ],
)
def test_production_refuses_each_weak_value(home: Path, name: str, value: str) -> None:
    assert name.removesuffix("_FALLBACKS") in faults(home, **{**SAFE, name: value})


def test_all_faults_are_told_at_once_and_no_password_with_them(home: Path) -> None:
    weak = {**SAFE, "DATABASE_URL": "mysql://u:pass-word@h/db", "REDIS_URL": "", "GPUMARKET_SECRET_KEY": "key-of-ours"}
    told = faults(home, **weak)
    assert told.count("\n  - ") == 3
    assert "pass-word" not in told
    assert "key-of-ours" not in told


def test_what_is_missing_comes_from_what_up_wrote(home: Path) -> None:
    home.mkdir()
    written = {"DATABASE_URL": "postgresql:///up", "REDIS_URL": "redis://up", "GPUMARKET_LOG_LEVEL": "ERROR"}
    (home / "environment.json").write_text(json.dumps(written))
    found = given(home, REDIS_URL="redis://mine", GPUMARKET_LOG_LEVEL="")
    assert (found.database_url, found.redis_url, found.log_level) == ("postgresql:///up", "redis://mine", "ERROR")


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "\x00"])
def test_a_damaged_file_of_up_is_named(home: Path, content: str) -> None:
    home.mkdir()
    (home / "environment.json").write_text(content)
    assert "environment.json" in faults(home)


def test_an_address_of_ipv6_is_served_by_its_name_in_requests(home: Path) -> None:
    assert given(home, GPUMARKET_PUBLIC_URL="http://[::1]:8000").allowed_hosts == ("[::1]",)


def manage(home: Path, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    bare = {
        name: value for name, value in os.environ.items() if not name.startswith(("GPUMARKET", "DATABASE", "REDIS"))
    }
    return subprocess.run(
        [sys.executable, "manage.py", *argv],
        cwd=ROOT, env={**bare, "GPUMARKET_HOME": str(home), **environ}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_deployment_with_strong_values_has_no_warning(home: Path) -> None:
    done = manage(home, "check", "--deploy", "--fail-level", "WARNING", **SAFE)
    assert (done.returncode, "no issues" in done.stdout) == (0, True), done.stderr


def test_nothing_starts_with_weak_values(home: Path) -> None:
    done = manage(home, "check", **{**SAFE, "GPUMARKET_SECRET_KEY": "weak"})
    assert done.returncode != 0
    assert "GPUMARKET_SECRET_KEY (or a fallback) is missing or weak" in done.stderr
