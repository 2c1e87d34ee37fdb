from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CASES = Path(__file__).with_name("typing_cases")


def test_type_checkers_know_the_types_of_calls_and_find_wrong_ones(tmp_path: Path) -> None:
    """The cases hold an ignore for each error that has to be found; one too many is an error itself."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--warn-unused-ignores",
            "--config-file=",
            f"--cache-dir={tmp_path}",
            # Only the cases: the rest of the package is checked on its own.
            "--follow-imports=silent",
            *map(str, sorted(CASES.glob("*.py"))),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no issues found" in done.stdout
