"""The test run's own servers and rules."""

import os
import subprocess
import sys

FILES = {
    "test_module.py": "import pytest\npytest.skip('no such package', allow_module_level=True)\n",
    "test_skip.py": "import pytest\ndef test_it(): pytest.skip('no such browser')\n",
    "test_xfail.py": "import pytest\n@pytest.mark.xfail\ndef test_it(): assert False\n",
    "test_url.py": "import os\ndef test_it(): assert os.environ['DATABASE_URL'] == 'postgresql://nowhere/none'\n",
}

# Said by a program that a test starts, whose bytecode may not lie beside its source.
SAYS = """
import subprocess, sys
def test_it():
    say = "import sys; print(sys.dont_write_bytecode, sys.pycache_prefix)"
    said = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True, check=True).stdout
    assert said == f"False {sys.pycache_prefix}\\n" and sys.pycache_prefix.endswith("bytecode")
"""


def run_pytest(folder, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a few test files under the plugin alone, with servers that are given and not asked for anything."""
    for name, code in FILES.items():
        (folder / name).write_text(code)
    kept = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST")}
    servers = {"TEST_DATABASE_URL": "postgresql://nowhere/none", "TEST_REDIS_URL": "redis://nowhere/0"}
    plugins = ("-p", "tests.servers", "-p", "no:django", "-p", "no:cacheprovider")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, "--continue-on-collection-errors", *plugins, str(folder)],
        env=kept | servers | environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_test_may_be_skipped_and_given_servers_are_used(tmp_path):
    done = run_pytest(tmp_path)
    assert "1 passed, 2 skipped, 1 xfailed" in done.stdout
    assert done.returncode == 0


def test_in_ci_a_skip_is_a_failure_and_an_expected_failure_is_none(tmp_path):
    done = run_pytest(tmp_path, CI="true")
    assert "1 failed, 1 passed, 1 xfailed, 1 error" in done.stdout
    assert "Skipped, which CI does not accept" in done.stdout
    assert "no such package" in done.stdout
    assert "no such browser" in done.stdout
    assert done.returncode == 1


def test_what_python_compiles_is_kept_for_the_next_program_though_not_beside_the_sources(tmp_path):
    (tmp_path / "test_says.py").write_text(SAYS)
    done = run_pytest(tmp_path, PYTHONDONTWRITEBYTECODE="1")
    assert "2 passed" in done.stdout
    assert list(tmp_path.rglob("*.pyc")) == []
