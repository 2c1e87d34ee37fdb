"""Who a supervisor is: a member slot of its namespace directory.

The slot is the lowest ``member-<k>.lock`` that can be locked, so a supervisor that is started again gets the slot it
had, and two that run from one configuration get two. The lock goes away with the process, however that ends. Beside it
lies a random token: whoever shows the token of a lease gets that lease back at once, without waiting for it to expire.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from durablefuture_trio._ids import new_id
from durablefuture_trio.errors import ConfigError
from durablefuture_trio.protocol.lease import Member

MAX_MEMBERS = 1000
"""Supervisors of one namespace that may share a directory."""

_TOKEN = re.compile(r"[0-9a-f]{32}")


@contextmanager
def member_slot(directory: str) -> Iterator[Member]:
    """Hold the lowest free slot of a namespace directory, which is made if it is missing.

    Raises:
        ConfigError: the directory cannot be used, or all slots are taken.
    """
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        slot, lock = _lock_lowest(directory)
    except OSError as error:
        problem = f"the directory of the namespace, {directory}, cannot be used: {error.strerror or error}; "
        raise ConfigError(
            [
                problem
                + "give another [supervisor] state_dir (default: [nats.embedded] data_dir), or mend its permissions"
            ]
        ) from error
    try:
        token = _token(os.path.join(directory, f"member-{slot}.token"))
        # Slots are counted per directory, but a name is one for the whole namespace: the token tells directories apart.
        yield Member(name=f"{_host()}-m{slot}-{token[:6]}", token=token, incarnation=new_id())
    finally:
        os.close(lock)


def _lock_lowest(directory: str) -> tuple[int, int]:
    for slot in range(MAX_MEMBERS):
        lock = os.open(os.path.join(directory, f"member-{slot}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        except OSError:
            os.close(lock)
            raise
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())  # for people who wonder who holds it
        return slot, lock
    raise ConfigError(
        [f"{MAX_MEMBERS} supervisors use {directory} already; give this one a [supervisor] state_dir of its own"]
    )


def _token(path: str) -> str:
    """The slot's token; a new one when there is none that can be used. The caller holds the slot's lock."""
    try:
        with open(path, encoding="ascii") as file:
            token = file.read().strip()
        if _TOKEN.fullmatch(token):
            return token
    except (FileNotFoundError, UnicodeDecodeError):
        pass  # written below
    token = new_id()
    draft = f"{path}.new"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(f"{token}\n")
        file.flush()
        os.fsync(fd)
    os.replace(draft, path)
    return token


def _host() -> str:
    name = socket.gethostname().partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)[:40] or "host"
