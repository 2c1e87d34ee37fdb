"""Keeps workflow code away from the world while it runs.

This is a fence against mistakes, not against malice: what Python reports to audit hooks is refused, and the few things
it does not report (threads on Python 3.11, ``time.sleep``) are replaced. Each refusal raises a `SandboxViolationError`
that names what to use instead, and is remembered by the run, so that code which swallows exceptions is blocked as well.

Only the thread that steps a run is guarded. The wall clock alone is moved for the whole process while a run is stepped.
"""

from __future__ import annotations

import _thread
import functools
import os
import sys
import threading
import time
import zoneinfo
from collections.abc import Callable, Iterator
from threading import get_ident
from types import FrameType, TracebackType
from typing import Any, NoReturn

import time_machine
import trio

from durablefuture_trio.errors import SandboxViolationError
from durablefuture_trio.sandbox._deterministic import (
    STATE,
    GuardedRun,
    GuardState,
    guarded_run,
    install_deterministic_functions,
)
from durablefuture_trio.sandbox._sources import source_here
from durablefuture_trio.sandbox._trio_driver import runs_of_trio, threads_of_trio

_FILES = "read and write files in an activity"
_NETWORK = "talk to the network in an activity"
_PROCESSES = "start and signal processes in an activity"
_ENVIRONMENT = "the environment belongs to the process: pass values as arguments"
_THREADS = (
    "for concurrency use `nursery.start_soon`, for blocking or CPU-bound work call an activity (a plain `def` activity "
    "runs in a worker thread)"
)
_SLEEP = "use `await trio.sleep(...)`, which is durable"
_TRIO_RUN = "the workflow already runs under Trio: `await` the function instead"
_INPUT = "ask for input in an activity, or send it to the workflow"
_NATIVE = "do this in an activity"

# The names of audit events (docs.python.org/3/library/audit_events.html), whole or up to the first dot.
_REFUSED_EVENTS = {
    "open": _FILES,
    "os.chdir": _FILES, "os.chflags": _FILES, "os.chmod": _FILES, "os.chown": _FILES, "os.getxattr": _FILES,
    "os.link": _FILES, "os.listdir": _FILES, "os.listdrives": _FILES, "os.listxattr": _FILES, "os.lockf": _FILES,
    "os.mkdir": _FILES, "os.remove": _FILES, "os.removexattr": _FILES, "os.rename": _FILES, "os.rmdir": _FILES,
    "os.scandir": _FILES, "os.setxattr": _FILES, "os.symlink": _FILES, "os.truncate": _FILES, "os.utime": _FILES,
    "shutil": _FILES, "tempfile": _FILES, "glob": _FILES, "pathlib": _FILES, "mmap": _FILES, "fcntl": _FILES,
    "sqlite3": "use the database in an activity",
    "socket": _NETWORK, "urllib": _NETWORK, "http": _NETWORK, "ftplib": _NETWORK, "smtplib": _NETWORK,
    "imaplib": _NETWORK, "poplib": _NETWORK, "nntplib": _NETWORK, "telnetlib": _NETWORK, "webbrowser": _NETWORK,
    "syslog": _NETWORK,
    "subprocess": _PROCESSES, "os.system": _PROCESSES, "os.exec": _PROCESSES, "os.fork": _PROCESSES,
    "os.forkpty": _PROCESSES, "os.spawn": _PROCESSES, "os.posix_spawn": _PROCESSES, "os.kill": _PROCESSES,
    "os.killpg": _PROCESSES, "os.startfile": _PROCESSES, "pty": _PROCESSES,
    "os.putenv": _ENVIRONMENT, "os.unsetenv": _ENVIRONMENT,
    "_thread.start_new_thread": _THREADS, "_thread.start_joinable_thread": _THREADS,
    "signal.pthread_kill": _PROCESSES, "builtins.input": _INPUT, "resource": _NATIVE,
}  # fmt: skip

_SOURCE_READERS = ("linecache", "tokenize")
_READER_DEPTH = 8
_SOURCE_FILES = (".py", ".pyc", ".pyw")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_verdicts: dict[str, str | None] = {}
_installed = False


class Guards:
    """``with Guards(run):`` while code of `run` is executed: its clock, its chance, and no way into the world.

    The context belongs to the calling thread. Nesting is a mistake of the caller.
    """

    __slots__ = ("_importer", "_run", "_travel")

    def __init__(self, run: GuardedRun) -> None:
        self._run = run

    def __enter__(self) -> None:
        if not _installed:
            install_guards()
        if STATE.run is not None:
            raise RuntimeError("a workflow is stepped while another one is being stepped")
        self._travel = time_machine.travel(self._run.now(), tick=False)
        self._travel.start()
        self._importer = _import_system._find_and_load  # noqa: SLF001 - see _suspended_import
        _import_system._find_and_load = _suspended_import(self._importer)  # noqa: SLF001
        STATE.thread = get_ident()
        STATE.importing = 0
        STATE.run = self._run

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        STATE.run = None
        _import_system._find_and_load = self._importer  # noqa: SLF001
        self._travel.stop()


def refuse(what: str, instead: str) -> NoReturn:
    """Refuse `what` to the workflow that is running.

    Raises:
        SandboxViolationError: always.
    """
    source = source_here(2)
    place = f" at {source}" if source else ""
    error = SandboxViolationError(f"workflow code used {what}{place}: {instead}", source=source)
    if STATE.run is not None:
        STATE.run.violated(error)
    raise error


def install_guards() -> None:
    """Put everything in place, once per process. Outside of workflows nothing changes but a few nanoseconds."""
    global _installed  # noqa: PLW0603 - audit hooks are process-wide and cannot be removed
    if _installed:
        return
    _installed = True
    install_deterministic_functions()
    for owner, name, what, instead in (
        (time, "sleep", "time.sleep", _SLEEP),
        (threading.Thread, "start", "a thread", _THREADS),
        (_thread, "start_new_thread", "a thread", _THREADS),
        (trio, "open_file", "trio.open_file", _FILES),
        (trio, "run_process", "trio.run_process", _PROCESSES),
        (trio.lowlevel, "open_process", "trio.lowlevel.open_process", _PROCESSES),
        (trio, "open_tcp_stream", "trio.open_tcp_stream", _NETWORK),
        (trio, "open_signal_receiver", "trio.open_signal_receiver", _PROCESSES),
        (*threads_of_trio(), "trio.to_thread", _THREADS),
        (*runs_of_trio(), "trio.run", _TRIO_RUN),
    ):
        setattr(owner, name, _refusing(getattr(owner, name), what, instead))
    sys.addaudithook(_audit)


def _refusing(original: Any, what: str, instead: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def refusing(*args: Any, **kwargs: Any) -> Any:
        if guarded_run() is not None:
            refuse(what, instead)
        return original(*args, **kwargs)

    return refusing


def _audit(event: str, args: tuple[Any, ...], _state: GuardState = STATE) -> None:
    # Hooks outlive their module: at the end of the interpreter its globals are None.
    if _state.run is None:
        return
    try:
        instead = _verdicts[event]
    except KeyError:
        instead = _REFUSED_EVENTS.get(event) or _REFUSED_EVENTS.get(event.partition(".")[0])
        _verdicts[event] = instead
    if instead is None or guarded_run() is None:
        return
    if event == "open":
        if _may_be_read(args):
            return
        refuse(f"open({args[0]!r})", instead)
    refuse(event, instead)


def _may_be_read(args: tuple[Any, ...]) -> bool:
    """Reading source files (tracebacks, `linecache`) and time zones belongs to running Python code."""
    path, mode, flags = args
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str) or (isinstance(flags, int) and flags > 0 and flags & _WRITING):
        return False
    if isinstance(mode, str) and not set(mode) <= set("rbtU"):
        return False
    if path.endswith(_SOURCE_FILES) or path.startswith(zoneinfo.TZPATH) or "tzdata" in path.split(os.sep):
        return True
    if path.startswith("<") and path.endswith(">"):  # no file: the compiler looks for the line of a syntax error
        return True
    frame = sys._getframe(1)  # noqa: SLF001 - the documented way to look at callers
    return any(module in _SOURCE_READERS for module in _modules_calling(frame))


def _modules_calling(frame: FrameType | None) -> Iterator[str]:
    for _ in range(_READER_DEPTH):
        if frame is None:
            return
        yield frame.f_globals.get("__name__", "")
        frame = frame.f_back


def _suspended_import(original: Callable[..., Any]) -> Callable[..., Any]:
    """The function that both the import statement and `importlib` call for a module that is not loaded yet."""

    def find_and_load(name: str, import_: Any) -> Any:
        if STATE.thread != get_ident():
            return original(name, import_)
        STATE.importing += 1
        try:
            return original(name, import_)
        finally:
            STATE.importing -= 1

    return find_and_load


_import_system: Any = sys.modules["_frozen_importlib"]
