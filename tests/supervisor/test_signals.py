"""SIGTERM and SIGINT, sent to a real process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from durablefuture_trio.errors import BrokerUnavailableError, ConfigError
from durablefuture_trio.supervisor._budget import RestartBudgetSpent
from durablefuture_trio.supervisor._exit import ExitCode, explain

DEADLINE_S = 20.0

SERVICE = """
import sys, trio
from durablefuture_trio.supervisor._signals import run_until_stopped

class Work:
    async def drain(self):
        print("draining", flush=True)
        await trio.sleep(float(sys.argv[1]))

async def service(*, task_status):
    if sys.argv[2] == "never-started":
        print("started", flush=True)
        await trio.sleep_forever()
    task_status.started(Work())
    if sys.argv[2] != "ends":
        await trio.sleep_forever()

async def main():
    return await run_until_stopped(service, float(sys.argv[3]), on_started=lambda: print("started", flush=True))

sys.exit(trio.run(main))
"""


def run(drain_s: float, mode: str = "", drain_timeout_s: float = DEADLINE_S) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(drain_s), mode, str(drain_timeout_s)], stdout=subprocess.PIPE, text=True
    )
    assert line(process) == "started"
    return process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def exit_code(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=DEADLINE_S)
    return process.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_and_the_exit_code_is_0(number: signal.Signals) -> None:
    process = run(drain_s=0.01)
    process.send_signal(number)
    assert line(process) == "draining"
    assert exit_code(process) == ExitCode.OK


def test_a_drain_that_takes_too_long_is_cut_off_with_its_own_exit_code() -> None:
    process = run(drain_s=600, drain_timeout_s=0.1)
    process.send_signal(signal.SIGTERM)
    assert exit_code(process) == ExitCode.DRAIN_DEADLINE_PASSED


def test_a_second_signal_stops_at_once() -> None:
    process = run(drain_s=600)
    process.send_signal(signal.SIGTERM)
    assert line(process) == "draining"
    process.send_signal(signal.SIGINT)
    assert exit_code(process) == ExitCode.DRAIN_DEADLINE_PASSED


def test_a_signal_before_anything_is_usable_just_stops() -> None:
    process = run(0, "never-started")
    process.send_signal(signal.SIGTERM)
    assert exit_code(process) == ExitCode.OK


def test_a_service_that_ends_by_itself_needs_no_signal() -> None:
    process = run(0, "ends")
    assert exit_code(process) == ExitCode.OK


def test_errors_that_users_can_mend_have_exit_codes_and_defects_keep_their_traceback() -> None:
    nested = BaseExceptionGroup("", [ExceptionGroup("", [ConfigError(["a", "b"])]), ConfigError(["b", "c"])])
    assert explain(nested) == (ExitCode.BAD_CONFIG, ("a", "b", "c"))
    assert explain(BrokerUnavailableError("down")) == (ExitCode.NATS_UNREACHABLE, ("down",))
    assert explain(RestartBudgetSpent("x")) == (ExitCode.RESTART_BUDGET_SPENT, ("x",))
    assert explain(ExceptionGroup("", [ConfigError(["a"]), ValueError("defect")])) is None
