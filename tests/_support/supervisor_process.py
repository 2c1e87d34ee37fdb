"""A real supervisor in a process of its own, started, stopped at named moments, killed and looked into by tests.

Run as a program this is the composition root of the tests: ``durablefuture-supervisor`` with stops (see `stops`).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from simulator.storm.processes import (
    MARKER_VARIABLE,
    READY_DEADLINE_S,
    REPOSITORY,
    child_pids,
    command_line,
    eventually,
    kill_marked,
    marked_processes,
    send,
    state_of,
    until_gone,
)
from simulator.storm.processes import SupervisorProcess as PlainSupervisorProcess
from tests._support.stops import Reached, Stop, Stops, read_reports

__all__ = [
    "MARKER_VARIABLE",
    "READY_DEADLINE_S",
    "REPOSITORY",
    "SupervisorProcess",
    "child_pids",
    "command_line",
    "eventually",
    "kill_marked",
    "marked_processes",
    "send",
    "state_of",
    "until_gone",
]


class SupervisorProcess(PlainSupervisorProcess):
    """One supervisor that may stop at named moments."""

    def __init__(self, config: Path, environment: dict[str, str]) -> None:
        super().__init__(config, environment)
        self.reports = config.with_suffix(".stops")
        self._stops: tuple[str, ...] = ()

    async def start(self, *stops: str) -> None:
        """Start it and wait until it is ready, or stopped at one of `stops`."""
        self.spawn(*stops)
        await self.until(lambda: "supervisor is ready" in self.log or bool(read_reports(self.reports)))

    def spawn(self, *stops: str) -> None:
        """Start it, with these stops."""
        self.reports.unlink(missing_ok=True)
        self._stops = stops
        super().spawn()

    def command(self) -> list[str]:
        command = [sys.executable, "-X", "faulthandler", "-m", "tests._support.supervisor_process"]
        command += ["--config", str(self.config), "--reports", str(self.reports)]
        for stop in self._stops:
            command += ["--stop", str(Stop.parse(stop))]
        return command

    async def reached(self, stop: str) -> Reached:
        """Wait until it has stopped itself there."""

        def found() -> list[Reached]:
            assert self.is_running, f"the supervisor has ended:\n{self.log}"
            return [report for report in read_reports(self.reports) if report.stop == stop]

        await eventually(lambda: bool(found()) and state_of(self.pid) == "T", f"{stop} is reached")
        return found()[0]


# --- the program ------------------------------------------------------------------------------------------------------


def main() -> int:
    from durablefuture_trio import app
    from durablefuture_trio.supervisor._logging import configure_logging
    from durablefuture_trio.supervisor.settings import load_settings

    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--stop", action="append", type=Stop.parse, default=[])
    options = parser.parse_args()
    settings = load_settings(options.config, os.environ)
    configure_logging(settings.log)
    return app.run(settings, Stops(options.stop, options.reports).wiring())


if __name__ == "__main__":
    sys.exit(main())
