"""Connecting: where the server is, and whether its namespace is there."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from durablefuture_trio.client._client import Client, open_client
from durablefuture_trio.client._reading import unavailable
from durablefuture_trio.client._timing import NAMESPACE_WAIT_S
from durablefuture_trio.errors import BrokerUnavailableError, ConfigError, NamespaceError
from durablefuture_trio.ports.broker import Broker, BrokerError, NoAnswer, Rejected
from durablefuture_trio.protocol.namespace import read_namespace
from durablefuture_trio.protocol.subjects import Subjects, check_namespace

if TYPE_CHECKING:
    from durablefuture_trio.nats_bridge import ConnectOptions
    from durablefuture_trio.supervisor.settings import NatsSettings

logger = logging.getLogger("durablefuture_trio.client")

CONFIG_FILE = "supervisor.toml"
DEFAULT_NAMESPACE = "default"

_STREAM_NOT_FOUND = 10059


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server to connect to.

    Attributes:
        source: who said so, in words.
        namespace: that of the configuration, or the default.
    """

    options: ConnectOptions
    source: str
    namespace: str


@asynccontextmanager
async def connect(
    url: str | None = None, *, config: str | os.PathLike[str] | None = None, namespace: str | None = None
) -> AsyncIterator[Client]:
    """Connect to the supervisors of a namespace, through NATS.

        async with connect() as client:
            receipt = await client.run(order, "Bob", "widget-1000", 1000.0, 2)

    Where the server is: `url`; else the configuration file `config`; else the environment (``DURABLEFUTURE_NATS_URL``
    and the like); else ``./supervisor.toml``; else ``./.durablefuture/server.json``, which a supervisor with an
    embedded server writes. Environment variables override what a file says.

    Args:
        url: ``nats://host:port``, or several with commas; may hold user and password.
        config: the supervisor's configuration file (TOML).
        namespace: default: that of the configuration, else ``"default"``.

    Raises:
        ConfigError: nothing says where the server is, or what says so is wrong.
        BrokerUnavailableError: there is no usable server after ten seconds.
        NamespaceError: no supervisor has set up the namespace after ten seconds, or a newer program did.
    """
    server = find_server(url, config, os.environ)
    name = namespace if namespace is not None else server.namespace
    check_namespace(name)
    # Late: nats-py and asyncio cost 100 ms, which programs that never connect need not pay.
    from durablefuture_trio.nats_bridge import open_broker

    entered = False
    try:
        async with open_broker(server.options) as broker:
            entered = True
            subjects = await find_namespace(broker, name)
            async with open_client(broker, subjects) as client:
                yield client
    except BrokerUnavailableError as error:
        if entered:
            raise
        raise BrokerUnavailableError(f"{error} (the address comes from {server.source})") from error


def find_server(url: str | None, config: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Server:
    """Where the server is.

    Raises:
        ConfigError: nothing says so, or what does is wrong; all problems are named.
    """
    if url is not None:
        from durablefuture_trio.nats_bridge import ConnectOptions

        urls = tuple(part.strip() for part in url.split(",") if part.strip())
        if not urls:
            raise ConfigError(["the url is empty; give one like nats://127.0.0.1:4222"])
        return Server(options=ConnectOptions(urls=urls), source="the url given", namespace=DEFAULT_NAMESPACE)

    from durablefuture_trio.supervisor.settings import load_settings

    path = config if config is not None else (CONFIG_FILE if Path(CONFIG_FILE).is_file() else None)
    settings = load_settings(path, environ, check_modules=False)
    namespace = settings.supervisor.namespace
    if settings.nats.url is not None:
        source = "DURABLEFUTURE_NATS_URL" if "DURABLEFUTURE_NATS_URL" in environ else str(path)
        return Server(options=connect_options(settings.nats), source=source, namespace=namespace)

    from durablefuture_trio.nats_bridge import ConnectOptions
    from durablefuture_trio.supervisor._server_file import SERVER_FILE, read_server_file

    data_dir = Path(settings.nats.embedded.data_dir)
    found = read_server_file(data_dir)
    if found is None:
        raise ConfigError(_nowhere(path, data_dir / SERVER_FILE))
    options = ConnectOptions(
        urls=(found.url,),
        user=found.user,
        password=found.password,
        connect_timeout_s=settings.nats.connect_timeout,
    )
    return Server(options=options, source=str(data_dir / SERVER_FILE), namespace=namespace)


def _nowhere(path: str | os.PathLike[str] | None, server_file: Path) -> list[str]:
    if path is not None:
        return [
            f"{path} configures the embedded server, and {server_file} is not there: start the supervisor with "
            f"durablefuture-supervisor --config {path}, or give a url"
        ]
    return [
        "nothing says where the server is. Looked for, in this order: a url (connect(url), --url), a configuration "
        "(connect(config=...), --config), DURABLEFUTURE_NATS_URL in the environment, ./supervisor.toml, and "
        f"{server_file} of a running supervisor with an embedded server: all missing"
    ]


def connect_options(settings: NatsSettings) -> ConnectOptions:
    """The options of a configured server (``[nats] url``)."""
    from durablefuture_trio.nats_bridge import ConnectOptions

    tls = settings.tls
    return ConnectOptions(
        urls=settings.urls,
        user=settings.user,
        password=settings.password,
        credentials_file=_path(settings.credentials),
        tls_ca_file=None if tls is None else _path(tls.ca),
        tls_cert_file=None if tls is None else _path(tls.cert),
        tls_key_file=None if tls is None else _path(tls.key),
        connect_timeout_s=settings.connect_timeout,
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


async def find_namespace(broker: Broker, namespace: str, *, wait_s: float = NAMESPACE_WAIT_S) -> Subjects:
    """The names of a namespace that a supervisor has set up, or is about to.

    Raises:
        NamespaceError: there is none after `wait_s` seconds, or it is of a newer program.
        BrokerUnavailableError: the server refuses to be asked, or does not answer.
    """
    silent: NoAnswer | None = None
    told = False
    with trio.move_on_after(wait_s):
        while True:
            try:
                subjects = await _ready_namespace(broker, namespace)
                silent = None
            except NoAnswer as error:
                subjects, silent = None, error
            except BrokerError as error:
                raise unavailable(f"namespace {namespace!r}", error) from error
            if subjects is not None:
                return subjects
            if not told:
                logger.info("namespace %r is not set up yet; waiting %g s for a supervisor", namespace, wait_s)
                told = True
            await trio.sleep(1.0)
    if silent is not None:
        raise unavailable(f"namespace {namespace!r}", silent) from silent
    raise NamespaceError(
        f"namespace {namespace!r} does not exist on this server: start a supervisor for it "
        "(durablefuture-supervisor --config FILE), or correct the name"
    )


async def _ready_namespace(broker: Broker, namespace: str) -> Subjects | None:
    try:
        record = await read_namespace(broker, namespace)
    except Rejected as error:
        if error.code == _STREAM_NOT_FOUND:
            return None
        raise
    if record is None:
        return None
    subjects = Subjects(namespace, record.shards)
    # The record is written first and the streams follow; this one is made last.
    return None if await broker.stream_state(subjects.dead_stream) is None else subjects
