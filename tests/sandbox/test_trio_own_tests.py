"""Proof by Trio's own tests: what they demand of ``trio.run``, a workflow's driver does."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]

MODULES = (
    "trio._core._tests.test_run",
    "trio._core._tests.test_parking_lot",
    "trio._core._tests.test_local",
    "trio._core._tests.test_cancelled",
    "trio._core._tests.test_asyncgen",
    "trio._core._tests.test_unbounded_queue",
    "trio._core._tests.test_instrumentation",
    "trio._core._tests.test_exceptiongroup_gc",
    "trio._tests.test_sync",
    "trio._tests.test_channel",
    "trio._tests.test_timeouts",
    "trio._tests.test_contextvars",
    "trio._tests.test_scheduler_determinism",
)

NOT_RUN = "threaded"
"""Worker threads that call back: on a driver that does not sleep they have to race a busy loop."""

EXCEPTIONS = {
    "test_current_time": "wants the real clock to tick by itself",
    "test_current_clock": "wants the clock object it passed to trio.run",
    "test_current_statistics": "calls run_sync_soon to see it wait for a wake-up by socket; ours takes effect at once",
    "test_cancel_scope_repr": "uses a worker thread",
    "test_trio_context_detection": "uses a worker thread",
    "test_reason_delayed_ki": "raises SIGINT and wants Trio's signal handler",
    "test_fallback_when_no_hook_claims_it": "iterates async generators outside of any task, which workflow code cannot",
    "test_delegation_to_existing_hooks": "iterates async generators outside of any task, which workflow code cannot",
    "test_the_trio_scheduler_is_not_deterministic": "a workflow's scheduler is",
}


def test_the_tests_that_trio_ships_pass_under_the_driver_but_for_threads_signals_and_clocks(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    finished = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "--tb=short", "-c", os.devnull, f"--rootdir={tmp_path}",
            "-p", "no:cacheprovider", "-p", "no:trio", "-p", "no:hypothesispytest",
            "-p", "tests._support.trio_own_tests",
            f"--junitxml={report}", "-k", f"not {NOT_RUN}",
            "--pyargs", *(module for module in MODULES if find_spec(module)),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = {case.attrib["name"].partition("[")[0] for case in cases if case.find("failure") is not None}
    errors = [case.attrib["name"] for case in cases if case.find("error") is not None]
    assert not errors, finished.stdout
    assert failed <= EXCEPTIONS.keys(), finished.stdout
    assert len(cases) - len(failed) > 250
