"""The database of a test run: migrated once, copied to each worker, and emptied after a test where something was left.

What migrating makes is kept as a dump in pytest's cache, for the next run with the very same migrations.
"""

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction
from django.test import TransactionTestCase

from marketplace.embedded import postgres

TEMPLATE = "migrated"
DUMPS_KEPT = 3
# What migrating fills; no test changes it, and making it again would cost more than all the rest.
KEPT = {"billing_dunningstep", "django_migrations", "django_content_type", "auth_permission", "django_site"}


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings_parallel_suffix: None, django_db_blocker: Any, pytestconfig: pytest.Config
) -> None:
    """Have every worker's database be a copy of one that the first of them makes."""
    with django_db_blocker.unblock():
        _make_template(Path(os.environ["GPUMARKET_HOME"]), dumps=_dumps(pytestconfig))
    connection.settings_dict["TEST"] |= {"TEMPLATE": TEMPLATE, "MIGRATE": False}


def _dumps(config: pytest.Config) -> Path | None:
    """Return the folder of dumps; there is none for a server that is not ours, whose version may be another."""
    if "TEST_DATABASE_URL" in os.environ or config.cache is None:
        return None
    return config.cache.mkdir("migrated")


def _make_template(home: Path, *, dumps: Path | None) -> None:
    with (home / f"{TEMPLATE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (home / TEMPLATE).exists():
            return
        with connection._nodb_cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {TEMPLATE}")
            cursor.execute(f"CREATE DATABASE {TEMPLATE}")
        dump = dumps and dumps / f"{_of_what_migrating_reads()}.sql"
        if dump and dump.exists():
            _run(
                "psql",
                "--quiet",
                "--no-psqlrc",
                "--set",
                "ON_ERROR_STOP=1",
                "--single-transaction",
                "--file",
                str(dump),
            )
        else:
            _migrate()
            if dump:
                _keep(dump)
        (home / TEMPLATE).touch()


def _migrate() -> None:
    own = connection.settings_dict["NAME"]
    connection.close()
    connection.settings_dict["NAME"] = TEMPLATE
    try:
        call_command("migrate", verbosity=0, interactive=False, run_syncdb=True)
    finally:
        connection.close()
        connection.settings_dict["NAME"] = own


def _of_what_migrating_reads() -> str:
    """Return a digest of the code that migrating runs, and of the versions of what it runs with."""
    digest = hashlib.sha256()
    for pattern in ("pyproject.toml", "*/migrations/*.py", "*/models/*.py", "tests/database.py"):
        for path in sorted(settings.BASE_DIR.glob(pattern)):
            digest.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _keep(dump: Path) -> None:
    unfinished = dump.with_suffix(f".{os.getpid()}")
    _run("pg_dump", "--no-owner", "--file", str(unfinished))
    unfinished.rename(dump)
    for old in sorted(dump.parent.glob("*.sql"), key=lambda path: path.stat().st_mtime)[:-DUMPS_KEPT]:
        old.unlink()


def _run(program: str, *words: str) -> None:
    """Run a program of PostgreSQL's own on the template."""
    server = connection.settings_dict
    environ = {"PGPASSWORD": server["PASSWORD"], "PGHOST": server["HOST"], "PGPORT": str(server["PORT"])}
    environ |= {"PGUSER": server["USER"], "PGDATABASE": TEMPLATE, "PATH": os.defpath}
    subprocess.run([str(postgres.programs() / program), *words], env=environ, check=True)


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> None:
    """Have tests that commit leave their tables empty, also those whose rows may never be deleted elsewhere."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        is_superuser = cursor.fetchone()[0]
        for table in ("billing_transfer", "billing_charge"):
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_is_never_emptied")
    if is_superuser:  # Who is not may not switch triggers off; there Django's own way, which takes half a second, does.
        TransactionTestCase._fixture_teardown = lambda self: empty_what_was_filled()


def empty_what_was_filled() -> None:
    """Delete every row of our tables. Most are empty, and to TRUNCATE those too is what takes Django so long."""
    tables = set(connection.introspection.django_table_names(only_existing=True, include_views=False)) - KEPT
    asked = " UNION ALL ".join(f"(SELECT '{table}' FROM \"{table}\" LIMIT 1)" for table in sorted(tables))
    with connection.cursor() as cursor:
        cursor.execute(asked)
        filled = [table for (table,) in cursor.fetchall()]
        with transaction.atomic():
            cursor.execute("SET LOCAL session_replication_role = replica")  # No trigger and no foreign key asks back.
            for table in filled:
                cursor.execute(f'DELETE FROM "{table}"')
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class ON pg_class.oid = inhparent "
            "WHERE relkind = 'p' AND relname LIKE 'provisioning_%'"
        )
        for (partition,) in cursor.fetchall():  # Readings stand in no model's table, and each day's are a table.
            cursor.execute(f"DROP TABLE {partition}")
