"""In which order workers take the files of tests. A file is one worker's, so that what its tests share is made once.

Those that wait for other programs begin first: what only computes fills the end evenly.
"""

import gc

import pytest

WAITING = (
    "tests/scenarios/test_faults.py",
    "tests/slurm/",
    "tests/provisioning/test_drivers.py",
    "tests/provisioning/agent/test_podman",
    "tests/provisioning/agent/",
    "tests/scenarios/",
    "tests/bench/",
    "tests/marketplace/embedded/",
    "tests/marketplace/portal/test_browser.py",
    "tests/marketplace/portal/test_browser_payments.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort whole files; the tests within one keep their order."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    return next((at for at, part in enumerate(WAITING) if item.nodeid.startswith(part)), len(WAITING))


def pytest_collection_finish() -> None:
    """Keep the collector of garbage from walking over all that was imported, again and again."""
    gc.collect()
    gc.freeze()
