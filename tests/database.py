"""The database of a test run: made once, copied to each worker, and emptied after a test where something was left."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import TransactionTestCase

from tests import schema
from tests.standing import WORLD, Plan

TEMPLATE = "migrated"
# What migrating fills; no test changes it, and making it again would cost more than all the rest.
KEPT = {"billing_dunningstep", "django_migrations", "django_content_type", "auth_permission", "django_site"}


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix: None, django_db_blocker: Any) -> None:
    """Have every worker's database be a copy of one that the first of them makes."""
    with django_db_blocker.unblock():
        _make_template(Path(os.environ["GPUMARKET_HOME"]))
    connection.settings_dict["TEST"] |= {"TEMPLATE": TEMPLATE, "MIGRATE": False}


def _make_template(home: Path) -> None:
    with (home / f"{TEMPLATE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (home / TEMPLATE).exists():
            return
        with connection._nodb_cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {TEMPLATE}")
            cursor.execute(f"CREATE DATABASE {TEMPLATE}")
        own = connection.settings_dict["NAME"]
        connection.close()
        connection.settings_dict["NAME"] = TEMPLATE
        try:
            # A server that is not ours may be of another version than our dumps.
            (schema.migrate if "TEST_DATABASE_URL" in os.environ else schema.fill)()
        finally:
            connection.close()
            connection.settings_dict["NAME"] = own
        (home / TEMPLATE).touch()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Have tests that commit leave their tables empty, also those whose rows may never be deleted elsewhere."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        is_superuser = cursor.fetchone()[0]
        for table in ("billing_transfer", "billing_charge"):
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_is_never_emptied")
    if is_superuser:  # Who is not may not switch triggers off; there Django's own way, which takes half a second, does.
        TransactionTestCase._fixture_teardown = lambda self: empty_what_was_filled()
    yield
    with django_db_blocker.unblock():
        WORLD.begin(Plan())


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
