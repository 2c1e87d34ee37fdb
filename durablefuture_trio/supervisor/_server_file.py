"""``server.json``: how to reach the embedded server of a data directory.

A small module of its own: clients read the file without loading the supervisor.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from durablefuture_trio.errors import ConfigError

SERVER_FILE = "server.json"


class ServerFile(msgspec.Struct, frozen=True, kw_only=True):
    """What ``server.json`` says.

    Attributes:
        url: where the server listens.
        port: its port; kept over restarts.
        user, password: its credentials, random for each data directory.
        pid: its process; 0 after it was stopped in good order.
    """

    url: str
    port: int
    user: str
    password: str = msgspec.field(default="")
    pid: int = 0

    def __repr__(self) -> str:
        return f"ServerFile(url={self.url!r}, user={self.user!r}, pid={self.pid})"


def read_server_file(data_dir: str | os.PathLike[str]) -> ServerFile | None:
    """The server file of a data directory, None if there is none.

    Raises:
        ConfigError: it cannot be read.
    """
    path = Path(data_dir).expanduser() / SERVER_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=ServerFile)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            [
                f"{path} cannot be read: {error}; start the supervisor of this directory as the same user, or "
                "delete the file and start the supervisor again"
            ]
        ) from error


def write_server_file(data_dir: Path, content: ServerFile) -> None:
    """Replace the server file in one step; only its owner may read it.

    Raises:
        OSError: it cannot be written.
    """
    draft = data_dir / f"{SERVER_FILE}.new"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    os.replace(draft, data_dir / SERVER_FILE)
