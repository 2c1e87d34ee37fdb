"""``durablefuture-supervisor``, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from durablefuture_trio._version import __version__

APPLICATION = """
from durablefuture_trio import activity, workflow
print("modules may print what they like")
@activity
async def ship(order: int) -> str: return "shipped"
@workflow
async def order(order: int) -> str: return await ship(order)
"""


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from durablefuture_trio.cli import supervisor_main; sys.exit(supervisor_main())"
    environ = {key: value for key, value in os.environ.items() if not key.startswith("DURABLEFUTURE_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=directory,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APPLICATION)
    (tmp_path / "supervisor.toml").write_text('[supervisor]\nmodules = ["shop"]\n')
    return tmp_path


def test_version_and_help_answer_without_a_configuration(tmp_path: Path) -> None:
    version = run(tmp_path, "--version")
    assert (version.returncode, version.stdout) == (0, f"durablefuture-supervisor {__version__}\n")
    helped = run(tmp_path, "--help")
    assert helped.returncode == 0
    assert "exit codes: 0" in helped.stdout


def test_wrong_usage_is_exit_code_2(tmp_path: Path) -> None:
    assert run(tmp_path, "--no-such-option").returncode == 2


def test_check_imports_the_modules_and_lists_what_they_define(shop: Path) -> None:
    done = run(shop, "--check", "--config", "supervisor.toml")
    assert (done.returncode, done.stdout) == (0, "workflows: order\nactivities: ship\n")


def test_check_finds_modules_beside_the_configuration_from_anywhere(
    shop: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = run(elsewhere, "--check", "--config", str(shop / "supervisor.toml"))
    assert done.returncode == 0, done.stderr


def test_check_reports_every_problem_of_the_file_with_exit_code_78(shop: Path) -> None:
    (shop / "supervisor.toml").write_text('[supervisor]\nmodules = ["shop", "nowhere"]\nrole = 1\n[nats]\nurl = "x"\n')
    done = run(shop, "--check", "--config", "supervisor.toml")
    assert done.returncode == 78
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.split(":")[1:3] for line in lines] == [[" supervisor.toml", number] for number in "235"]


def test_check_reports_what_the_modules_raise_with_exit_code_78(shop: Path) -> None:
    (shop / "broken.py").write_text("1 / 0\n")
    (shop / "again.py").write_text(APPLICATION)
    (shop / "supervisor.toml").write_text('[supervisor]\nmodules = ["shop", "broken", "again"]\n')
    done = run(shop, "--check")
    assert done.returncode == 78
    assert "ZeroDivisionError" in done.stderr
    assert "have the name order" in done.stderr, "two modules define it"


def test_check_survives_modules_that_end_the_process(shop: Path) -> None:
    (shop / "shop.py").write_text("import os; os._exit(9)\n")
    done = run(shop, "--check")
    assert done.returncode == 78
    assert "exited with code 9" in done.stderr


def test_print_config_prints_toml_with_the_defaults(shop: Path) -> None:
    done = run(shop, "--print-config")
    assert done.returncode == 0
    printed = tomllib.loads(done.stdout)
    assert printed["supervisor"]["modules"] == ["shop"]
    assert printed["sandbox"]["processes"] == 1
    assert printed["nats"]["embedded"]["data_dir"] == str(shop / ".durablefuture")


def test_a_missing_configuration_is_exit_code_78_with_the_remedy(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 78
    assert done.stderr == (
        "durablefuture-supervisor: supervisor.toml: no such file; name the configuration with --config FILE\n"
    )
