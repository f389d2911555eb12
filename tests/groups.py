"""Which tests run in one worker, and in which order workers take them.

A file is a group, so that what its tests share is made once. Tests that wait for other programs begin first and are
spread over those that only compute.
"""

import gc

import pytest

# Whole runs of programs, each in one worker: by parts of the tests' names, in the order in which they begin.
FIRST = {
    "faults": ("tests/scenarios/test_faults.py",),
    "slurm": ("tests/slurm/", "[slurm"),
    "containers": ("agent/test_podman.py", "agent/test_podman_failures.py", "test_drivers.py"),
    "containers of agents": ("agent/test_podman_", "agent/test_ssh_containers.py"),
}
WAITING = (
    "tests/provisioning/agent/",
    "tests/scenarios/",
    "tests/bench/",
    "tests/marketplace/embedded/",
    "tests/marketplace/portal/test_browser.py",
)


# Before pytest-xdist reads the marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = list(FIRST)
    order: dict[str, float] = {}
    files = list(dict.fromkeys(_group(item) for item in items))
    for kind in (True, False):
        those = [name for name in files if name not in FIRST and name.startswith(WAITING) == kind]
        order |= {name: len(places) + number / len(those) for number, name in enumerate(those)}
    order |= {name: number for number, name in enumerate(places)}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: order[_group(item)])


def _group(item: pytest.Item) -> str:
    for name, parts in FIRST.items():
        if any(part in item.nodeid for part in parts):
            return name
    return item.nodeid.partition("::")[0]


def pytest_collection_finish() -> None:
    """Keep the collector of garbage from walking over all that was imported, again and again."""
    gc.collect()
    gc.freeze()
