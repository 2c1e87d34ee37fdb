"""Imports the configured modules in a process of its own and tells what is wrong with them.

Run as ``python -m durablefuture_trio.cli._checking <fd>`` it is that process: it reads what to import from stdin and
writes what it found to the file descriptor, because stdout belongs to whatever the modules print.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

import msgspec

from durablefuture_trio.errors import ConfigError
from durablefuture_trio.supervisor._children import ExitStatus
from durablefuture_trio.supervisor.settings import Settings


class Wanted(msgspec.Struct):
    """What to import, and from where."""

    modules: tuple[str, ...]
    sys_path: tuple[str, ...]


class Found(msgspec.Struct):
    """The names that were registered, or what is wrong."""

    workflows: tuple[str, ...] = ()
    activities: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def check_modules(settings: Settings) -> Found:
    """Import the modules in a new process. Never raises for what is wrong with them."""
    modules, timeout_s = settings.supervisor.modules, settings.supervisor.start_timeout
    wanted = Wanted(modules=modules, sys_path=settings.import_path)
    with tempfile.TemporaryFile() as answer:
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__, str(answer.fileno())],
                input=msgspec.json.encode(wanted),
                stdout=sys.stderr,
                pass_fds=(answer.fileno(),),
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Found(problems=(f"importing {', '.join(modules)} took longer than {timeout_s:g} s",))
        answer.seek(0)
        data = answer.read()
    if not data:
        status = ExitStatus(done.returncode)
        return Found(problems=(f"the process that imported {', '.join(modules)} {status} before it was finished",))
    return msgspec.json.decode(data, type=Found)


def _import(wanted: Wanted) -> Found:
    from durablefuture_trio.authoring.registry import Registry

    sys.path[:] = wanted.sys_path
    try:
        registry = Registry.load(wanted.modules)
    except ConfigError as error:
        return Found(problems=error.problems)
    return Found(workflows=tuple(registry.workflows), activities=tuple(registry.activities))


if __name__ == "__main__":
    found = _import(msgspec.json.decode(sys.stdin.buffer.read(), type=Wanted))
    with open(int(sys.argv[1]), "wb") as output:
        output.write(msgspec.json.encode(found))
