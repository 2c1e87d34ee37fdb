"""Histories replayed in a process of its own, with another hash seed; its program is this module's `main`."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import msgspec

from durablefuture_trio.authoring.registry import Registry, pickle_definitions
from durablefuture_trio.ports.frames import Loaded, LoadRun
from durablefuture_trio.sandbox._host import ReplayHost
from tests._support.language_history import RunHistory, replayable

ROOT = Path(__file__).parents[2]


class Bundle(msgspec.Struct):
    """The histories of one test, and the code they ran with."""

    test: str
    definitions: bytes
    runs: list[tuple[str, tuple[bytes, ...], tuple[str, ...]]]


def bundle(test: str, registry: Registry, runs: Iterable[RunHistory], open_runs: frozenset[str]) -> Bundle:
    """What has to be sent along."""
    return Bundle(
        test,
        pickle_definitions(registry.workflows.values()),
        [(run.run_id, run.bodies, run.patches) for run in runs if replayable(run, open_runs)],
    )


def replay_elsewhere(bundles: list[Bundle]) -> list[str]:
    """Replay everything in a fresh process; what did not replay, in words."""
    process = subprocess.run(
        [sys.executable, "-m", "tests._support.language_elsewhere"],
        input=msgspec.msgpack.encode(bundles),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": "20717"},
        cwd=ROOT,
        timeout=120,
        check=True,
    )
    return msgspec.msgpack.decode(process.stdout, type=list[str])


def _problems(of: Bundle) -> list[str]:
    host = ReplayHost(Registry.load((), of.definitions).workflows)
    found = []
    for run_id, bodies, patches in of.runs:
        frame = LoadRun(exchange=1, run_id=run_id, commits=bodies, first=True, last=True, patches=patches)
        answer = host.handle(frame)[-1]
        if not isinstance(answer, Loaded):
            found.append(f"{of.test}, run {run_id}: {answer}")
    host.close()
    return found


def main() -> None:
    warnings.simplefilter("ignore", ResourceWarning)  # async generators that tests leave in the middle
    bundles = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=list[Bundle])
    sys.stdout.buffer.write(msgspec.msgpack.encode([problem for of in bundles for problem in _problems(of)]))


if __name__ == "__main__":
    main()
