"""A TCP server that greets like a nats-server of the version one likes, and knows nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio


@asynccontextmanager
async def greeting_server(version: str) -> AsyncIterator[str]:
    """Yields its url."""
    info = json.dumps({"server_id": "X", "version": version, "proto": 1, "headers": True, "max_payload": 1048576})

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(f"INFO {info}\r\n".encode())
            try:
                async for data in stream:
                    for _ in range(data.count(b"PING\r\n")):
                        await stream.send_all(b"PONG\r\n")
            except trio.BrokenResourceError:
                return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"nats://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
