"""Clients in a process of their own, which is killed too: what it had asked it asks again when it comes back, under the
same request ids.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

import trio

from durablefuture_trio.client import open_client
from durablefuture_trio.client._connect import find_namespace, find_server
from durablefuture_trio.nats_bridge import open_broker
from durablefuture_trio.supervisor._exit import explain
from simulator.storm.clients import Visitor
from simulator.storm.plan import Assignment, Plan
from simulator.storm.processes import RestartableProcess
from simulator.storm.words import Words


class ClientProcess(RestartableProcess):
    """The clients of all assignments that are kept apart.

    Args:
        home: its directory; `words_file` is there.
        config: of a supervisor, which says where the server is.
    """

    def __init__(self, home: Path, config: Path, plan: Plan, namespace: str, environment: dict[str, str]) -> None:
        super().__init__(home / "client", environment)
        self.words_file = home / "told.jsonl"
        self._arguments = ["--config", str(config), "--namespace", namespace, "--words", str(self.words_file)]
        self._arguments += ["--seed", plan.seed, "--seconds", str(plan.seconds)]
        self._began_at = time.time()

    def command(self) -> list[str]:
        command = [sys.executable, "-X", "faulthandler", "-m", "simulator.storm.client_process", *self._arguments]
        return [*command, "--elapsed", str(time.time() - self._began_at)]


async def run(options: argparse.Namespace, assignments: list[Assignment]) -> None:
    """Carry out the assignments; returns when all is known.

    Raises:
        BrokerUnavailableError, NamespaceError: there is no server for too long: to be started again.
    """
    words = Words(options.words)
    environ = {key: value for key, value in os.environ.items() if not key.startswith("DURABLEFUTURE_")}
    async with open_broker(find_server(None, options.config, environ).options) as broker:
        subjects = await find_namespace(broker, options.namespace)
        async with open_client(broker, subjects) as client, trio.open_nursery() as nursery:
            for assignment in assignments:
                nursery.start_soon(Visitor(assignment, [client], words, options.elapsed).run)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--config", "--namespace", "--seed"):
        parser.add_argument(name, required=True)
    parser.add_argument("--words", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--elapsed", type=float, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    plan = Plan.drawn(options.seed, options.seconds, supervisors=None, embedded=None)
    try:
        trio.run(run, options, [assignment for assignment in plan.assignments if assignment.apart])
    except (Exception, BaseExceptionGroup) as error:
        explained = explain(error)
        if explained is None:
            raise
        code, lines = explained
        sys.exit("\n".join((f"code {code}", *lines)))


if __name__ == "__main__":
    main()
