"""The asyncio side: one nats-py connection. The only module with asyncio-flavoured code.

What nats-py does here: handshake, authentication, TLS, the protocol parser, pings. What it does not do, and why:

- *Reconnecting.* nats-py keeps what was not yet written in a buffer and sends it after a reconnect, behind the back of
  those who were told that nobody answered; and some ``-ERR`` lines close its client for good. So every connection is a
  client of its own, never reused, and `BridgeLink` opens the next one.
- *Subscriptions and publishes.* A nats-py subscription hands each message through a queue to a task of its own, a
  publish through another queue to the flusher task; each hop is several loop callbacks, and a callback costs 15 µs
  under trio-asyncio. Messages go from the parser straight to `on_message`, and what goes out is written in one piece.

Both hang on three protected methods of nats-py's client (``_process_msg``, ``_connect_to_server``, ``_close``), which
is why its version is bounded in pyproject.toml.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import nats.aio.client
import nats.errors
from nats.aio.transport import TcpTransport

from durablefuture_trio.nats_bridge.options import ConnectOptions

OnMessage = Callable[[int, bytes, bytes, bytes, "bytes | None"], None]
"""Called with sid, subject, reply, body and header block of each message, from the parser. Must not raise."""

_READ_BUFFER_BYTES = 256 * 1024
_PING_INTERVAL_S = 2
_PINGS_OUTSTANDING = 2
"""A server silent for 4 to 6 seconds is given up and connected to anew."""


class ConnectFailed(Exception):
    """One attempt to connect failed. ``refused``: trying the same again is no use."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class _Transport(TcpTransport):
    """nats-py's transport, with the two things it hides."""

    def write_now(self, data: bytes) -> int:
        """Hand bytes to the socket and return how many it has not taken yet."""
        assert self._io_writer is not None
        self._io_writer.transport.write(data)
        return self._io_writer.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close without waiting for what was not sent: a stopped server would never take it."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    async def wait_closed(self) -> None:
        """One turn of the loop, in which an aborted socket is closed: after a failed TLS handshake asyncio's own
        `wait_closed` never returns."""
        await asyncio.sleep(0)


class Connection(nats.aio.client.Client):
    """One connection to a server, from the handshake to its end.

    Args:
        on_message: gets every message.
        on_closed: called once when the connection has ended, for whatever reason.
    """

    def __init__(self, on_message: OnMessage, on_closed: Callable[[], None]) -> None:
        super().__init__()
        self._on_message = on_message
        self._on_closed: Callable[[], None] | None = on_closed
        self._socket: _Transport | None = None
        self.last_problem: Exception | None = None

    @property
    def info(self) -> dict[str, Any]:
        """The server's INFO."""
        return self._server_info

    def write(self, data: bytes) -> int:
        """Send protocol lines; returns how many bytes the socket has not taken yet."""
        if self._socket is None or self.is_closed:
            return 0
        return self._socket.write_now(data)

    async def remember(self, error: Exception) -> None:
        """nats-py's error callback: what goes wrong on the way to a connection, and complaints of the server."""
        self.last_problem = error

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        self._on_message(sid, subject, reply, data, headers)

    async def _connect_to_server(self, s: Any) -> None:
        self._socket = self._transport = _Transport()  # type: ignore[no-untyped-call]  # nats-py leaves it untyped
        await self._socket.connect(
            s.uri, buffer_size=_READ_BUFFER_BYTES, connect_timeout=self.options["connect_timeout"]
        )

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        on_closed, self._on_closed = self._on_closed, None
        if on_closed is not None:
            on_closed()
        if self._socket is not None:
            self._socket.abort()
        if self._flush_queue is not None:  # otherwise connect() has not even begun, and nats-py cannot close
            await super()._close(status, do_cbs)


async def open_connection(
    options: ConnectOptions, urls: list[str], on_message: OnMessage, on_closed: Callable[[], None]
) -> Connection:
    """Connect to one of the servers.

    Raises:
        ConnectFailed: to none of them.
    """
    connection = Connection(on_message, on_closed)
    try:
        await connection.connect(
            servers=urls,
            name=options.name,
            allow_reconnect=False,
            # Together: one round over the servers (nats-py discards one after *more* than this many failures).
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=options.attempt_timeout_s,  # type: ignore[arg-type]  # nats-py says int, means seconds
            ping_interval=_PING_INTERVAL_S,
            max_outstanding_pings=_PINGS_OUTSTANDING,
            error_cb=connection.remember,
            user=options.user,
            password=options.password,
            token=options.token,
            user_credentials=options.credentials_file,
            nkeys_seed=None if options.nkey_seed_file is None else str(options.nkey_seed_file),
            tls=options.tls_context(),
            tls_hostname=options.tls_hostname,
            tls_handshake_first=options.tls_handshake_first,
        )
    except (OSError, nats.errors.Error, ImportError) as error:
        await connection.close()
        # NoServersError says only that none was left; the reason went to the error callback.
        reason = connection.last_problem if isinstance(error, nats.errors.NoServersError) else error
        raise ConnectFailed(str(reason) or type(reason).__name__, refused=_is_final(reason)) from error
    except BaseException:
        await connection.close()
        raise
    if options.uses_tls and not connection.info.get("tls_required"):
        await connection.close()
        raise ConnectFailed("TLS is configured here, but the server does not ask for it", refused=True)
    return connection


def _is_final(reason: Exception | None) -> bool:
    """A missing package or file, a certificate that is not trusted, credentials that the server does not want."""
    if isinstance(reason, ImportError | FileNotFoundError | ssl.SSLCertVerificationError):
        return True
    text = str(reason).lower()
    return isinstance(reason, nats.errors.Error) and ("auth" in text or "invalid" in text)
