"""A TCP proxy between one client and a server, which can be cut, deafened and mended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

_CHUNK = 64 * 1024


class TcpProxy:
    """Forwards every connection to the server's current port.

    Attributes:
        port: where it listens.
    """

    def __init__(self, server_port: Callable[[], int], nursery: trio.Nursery) -> None:
        self.port = -1
        self._server_port = server_port
        self._nursery = nursery
        self._connections: list[trio.CancelScope] = []
        self._open = True
        self._deaf = False

    def cut(self) -> None:
        """Break every connection and refuse new ones until `mend`."""
        self._open = False
        for scope in self._connections:
            scope.cancel()

    def deafen(self) -> None:
        """From now on throw away what the server sends; the connection looks alive to both sides."""
        self._deaf = True

    def mend(self) -> None:
        """Forward again, in both directions."""
        self._open = True
        self._deaf = False

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(
            self._forward, listeners, handler_nursery=self._nursery, task_status=_Started(task_status)
        )

    async def _forward(self, client: trio.SocketStream) -> None:
        async with client:
            if not self._open:
                return
            try:
                server = await trio.open_tcp_stream("127.0.0.1", self._server_port())
            except OSError:
                return
            async with server, trio.open_nursery() as nursery:
                self._connections.append(nursery.cancel_scope)
                try:
                    nursery.start_soon(partial(self._pump, client, server, nursery.cancel_scope, from_server=False))
                    await self._pump(server, client, nursery.cancel_scope, from_server=True)
                finally:
                    self._connections.remove(nursery.cancel_scope)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope, *, from_server: bool
    ) -> None:
        try:
            while data := await source.receive_some(_CHUNK):
                if not (from_server and self._deaf):
                    await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the other side went away: that ends this connection, as below
        scope.cancel()


class _Started(trio.TaskStatus[list[trio.SocketListener]]):
    """Tells the starter without handing it the listeners."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status

    def started(self, value: list[trio.SocketListener] | None = None) -> None:
        self._task_status.started()


@asynccontextmanager
async def tcp_proxy(server_port: Callable[[], int]) -> AsyncIterator[TcpProxy]:
    """A running proxy to the port that `server_port` names at each new connection."""
    async with trio.open_nursery() as nursery:
        proxy = TcpProxy(server_port, nursery)
        await nursery.start(proxy.serve)
        yield proxy
        nursery.cancel_scope.cancel()
