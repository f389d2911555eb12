"""Mistakes that were made twice became checks: who may import what, and what a file may look like."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("marketplace", "provisioning", "billing")
LINES_MAX, FUNCTION_LINES_MAX = 500, 70


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in (ROOT / folder).rglob("*.py") if "migrations" not in path.parts)


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of a source, read once for all checks."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_only_the_gateway_speaks_http_below_the_marketplace() -> None:
    speakers = {
        path.relative_to(ROOT).as_posix()
        for path in sources("provisioning", "billing")
        if "agent" not in path.parts and "django.http" in imported(path)
    }
    assert speakers == {"provisioning/gateway.py"}


@pytest.mark.parametrize("folder", ["marketplace/api", "marketplace/portal", "marketplace/console/views"])
def test_views_reach_no_rows_by_themselves(folder: str) -> None:
    """`access` is the only door to tenant rows; what spans rows is a question in a file of its own."""
    guilty = []
    for path in sources(folder):
        reached = [node.lineno for node in nodes(path) if isinstance(node, ast.Attribute) and node.attr == "objects"]
        guilty += [f"{path.relative_to(ROOT)}:{line}" for line in reached]
    assert guilty == []


def test_pages_do_not_walk_around_the_door() -> None:
    """A related manager reaches a tenant's rows without asking who wants them."""
    managers = {
        "memberships",
        "invitations",
        "usage_spans",
        "audit_entries",
        "ssh_keys",
        "registries",
        "tokens",
        "events",
        "runway",
    }
    guilty = []
    for path in sources("marketplace/portal", "marketplace/api"):
        reached = [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for node in nodes(path)
            if isinstance(node, ast.Attribute)
            and node.attr in managers
            and isinstance(node.value, ast.Name)
            and node.value.id in {"organization", "project", "instance"}
        ]
        guilty += reached
    assert guilty == []


def test_links_in_the_documents_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / room / "README.md" for room in ROOMS)]:
        targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        local = [target for target in targets if "://" not in target]
        broken += [f"{page.name}: {target}" for target in local if not (page.parent / target).exists()]
    assert broken == []


def test_files_and_functions_stay_readable() -> None:
    long = []
    for path in sources(*ROOMS, "tests"):
        text = path.read_text()
        if text.count("\n") > LINES_MAX:
            long.append(f"{path.relative_to(ROOT)} has {text.count(chr(10))} lines")
        for node in () if "tests" in path.relative_to(ROOT).parts else nodes(path):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{path.relative_to(ROOT)}:{node.name} has {lines} lines")
    assert long == []


def test_init_files_are_empty() -> None:
    full = [
        path.relative_to(ROOT).as_posix()
        for path in sources(*ROOMS)
        if path.name == "__init__.py" and path.parent.name != "models" and path.read_text().strip()
    ]
    assert full == []


def test_there_is_no_room_for_leftovers() -> None:
    forbidden = {"core", "common", "utils", "helpers", "managers", "services"}
    found = {path.stem for path in sources(*ROOMS)} | {path.parent.name for path in sources(*ROOMS)}
    assert found & forbidden == set()


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_readme(room: str) -> None:
    readme = (ROOT / room / "README.md").read_text()
    for heading in (
        "## Words",
        "## What is always true",
        "## What this room must not know",
        "## How to add",
        "## Decisions",
    ):
        assert heading in readme, f"{room}/README.md lacks “{heading}”"


def test_no_registry_and_no_path_of_a_machine_is_committed() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in tracked.split("\0") if name]
    assert "uv.lock" not in names
    registry = "pypi" + ".org"
    guilty = [
        name
        for name in names
        if (ROOT / name).suffix in {".py", ".md", ".toml", ".yaml", ".html", ""} and (ROOT / name).is_file()
        if registry in (ROOT / name).read_text(errors="ignore")
        or "/ro" + "ot/" in (ROOT / name).read_text(errors="ignore")
    ]
    assert guilty == []
