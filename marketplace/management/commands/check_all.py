"""Everything that has to hold before a change may land; `.ci/run` runs this and nothing else."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

ROOT = Path(__file__).resolve().parents[3]
TOOLS = Path(sys.executable).parent


class Command(BaseCommand):
    """Run every check, all of them even when one fails, and exit with 1 if one did."""

    help = "Run all checks and tests: exactly what CI runs."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        verdicts = []
        with tempfile.TemporaryDirectory() as home:
            for name, argv, environ in checks(Path(home)):
                self.stdout.write(f"\n== {name}: {' '.join(argv)}")
                self.stdout.flush()
                began = time.monotonic()
                code = run(argv, environ)
                verdict = f"{'ok' if code == 0 else f'FAILED ({code})':<12} {time.monotonic() - began:6.1f} s  {name}"
                self.stdout.write(f"== {verdict}")
                verdicts.append(verdict)
        self.stdout.write("\n" + "\n".join(verdicts))
        if any("FAILED" in verdict for verdict in verdicts):
            sys.exit(1)


def run(argv: list[str], environ: dict[str, str]) -> int:
    """Return the exit code of a command, with its output shown; 127 when there is no such command."""
    try:
        return subprocess.run(argv, cwd=ROOT, env=os.environ | environ, check=False).returncode  # noqa: S603
    except FileNotFoundError as error:
        sys.stderr.write(f"{error}\n")
        return 127


def checks(home: Path) -> list[tuple[str, list[str], dict[str, str]]]:
    """Return name, command line and environment of each check. None but the tests reaches a server."""
    python, manage = sys.executable, str(ROOT / "manage.py")
    offline = {
        "GPUMARKET_HOME": str(home),
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "REDIS_URL": "redis://127.0.0.1:1",
        # That the database does not answer keeps `makemigrations` from nothing but comparing with its history.
        "PYTHONWARNINGS": "ignore::RuntimeWarning",
    }
    production = offline | {
        "GPUMARKET_MODE": "production",
        "GPUMARKET_SECRET_KEY": secrets.token_urlsafe(64),
        "GPUMARKET_PUBLIC_URL": "https://gpu.example.org",
        "GPUMARKET_EMAIL_URL": "smtp://mail.example.org:587",
    }
    return [
        ("format", [python, "-m", "ruff", "format", "--check"], {}),
        ("lint", [python, "-m", "ruff", "check"], {}),
        ("import contracts", [str(TOOLS / "lint-imports")], {}),
        ("types", [python, "-m", "mypy"], offline),
        ("migrations", [python, manage, "makemigrations", "--check", "--dry-run"], offline),
        ("deployment", [python, manage, "check", "--deploy", "--fail-level", "WARNING"], production),
        ("tests", [shutil.which("uv") or "uv", "run", "pytest"], {}),
        ("generated files", ["git", "--no-pager", "diff", "--exit-code"], {}),
    ]
