"""The cases hold an ignore for each error that has to be found; one too many is an error itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = sorted(map(str, Path(__file__).with_name("typing_cases").glob("*.py")))


def test_mypy_knows_the_types_of_starts_and_finds_wrong_ones(tmp_path: Path) -> None:
    options = [
        "--strict",
        "--warn-unused-ignores",
        # One ignore serves two checkers, whose codes differ.
        "--disable-error-code=ignore-without-code",
        "--config-file=",
        f"--cache-dir={tmp_path}",
        # Only the cases: the rest of the package is checked on its own.
        "--follow-imports=silent",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *CASES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no issues found" in done.stdout


def test_pyright_knows_the_types_of_starts_and_finds_wrong_ones(tmp_path: Path) -> None:
    pytest.importorskip("pyright", reason="pyright is not installed")
    # Copied: a configuration can only include what lies beside it.
    for case in CASES:
        shutil.copy(case, tmp_path)
    config = {
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "standard",
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(CASES)
    assert [found["message"] for found in report["generalDiagnostics"]] == []
