"""The help and the reference say the same as the code, and the help is quick."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from marketplace.cli.main import app
from marketplace.cli.problems import EXIT_CODES

REFERENCE = Path(__file__).parents[3] / "docs" / "cli.md"
COMMANDS = [command.callback.__name__.replace("_", "-") for command in app.registered_commands]


@pytest.mark.parametrize("code", EXIT_CODES)
def test_every_exit_code_stands_in_the_help_and_the_reference(gpumarket, code):
    assert f"\n  {code:>5}  {EXIT_CODES[code]}" in gpumarket("--help").out
    assert f"\n| {code} | {EXIT_CODES[code]}" in REFERENCE.read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_stands_in_the_reference(gpumarket, command):
    page = REFERENCE.read_text()
    assert f"gpumarket {command}" in page
    options = re.findall(r"^  .*?(--[a-z-]+)", gpumarket(command, "--help").out, flags=re.MULTILINE)
    assert "--json" in options
    assert [option for option in options if option not in page] == []


def test_the_help_does_not_load_what_only_calls_need():
    probe = "import sys, marketplace.cli.main; print({'httpx', 'rich', 'django'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout == "set()\n"
