"""The configuration of a supervisor: frozen structs, read from TOML and from the environment.

Keys are those of the TOML file. An environment variable ``DURABLEFUTURE_<TABLE>_<KEY>`` (double underscores between the
parts are accepted as well) overrides a key: ``DURABLEFUTURE_NATS_URL``, ``DURABLEFUTURE_NATS__EMBEDDED__DATA_DIR``,
``DURABLEFUTURE_ACTIVITY_POOL_0_PROCESSES``. Lists are written with commas, booleans as ``true`` and ``false``.

Paths in the file are relative to the file's directory, so a supervisor finds its data wherever it is started from;
paths from the environment are relative to the working directory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec

from durablefuture_trio._ids import token
from durablefuture_trio.supervisor._settings_checks import check_settings
from durablefuture_trio.supervisor._settings_reader import (
    NOT_A_KEY,
    PATH_FIELD,
    Report,
    TableReader,
    overlay_environment,
    read_document,
)
from durablefuture_trio.supervisor._settings_rendering import render

Role = Literal["workflows", "activities"]

# The description of a Meta is what a problem says was expected.
Name: TypeAlias = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9_-]{1,64}\Z", description="1 to 64 letters, digits, '-' or '_', e.g. \"default\""
    ),
]
QueueName: TypeAlias = Annotated[
    str, msgspec.Meta(min_length=1, max_length=200, description="the name of a task queue, 1 to 200 characters")
]
Text: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, description="a string that is not empty")]
FilePath: TypeAlias = Annotated[
    str, msgspec.Meta(min_length=1, description="the path of a file or directory", extra=PATH_FIELD)
]
Modules: TypeAlias = Annotated[
    tuple[str, ...], msgspec.Meta(description='a list of module names, e.g. ["shop.workflows"]')
]
Roles: TypeAlias = Annotated[
    tuple[Role, ...], msgspec.Meta(min_length=1, description='a list with "workflows", "activities" or both')
]
Seconds: TypeAlias = Annotated[
    float, msgspec.Meta(ge=0, le=7 * 86400, description="a number of seconds, from 0 to 604800")
]
PositiveSeconds: TypeAlias = Annotated[
    float, msgspec.Meta(gt=0, le=7 * 86400, description="a number of seconds, above 0 and up to 604800")
]
Processes: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=256, description="a whole number from 1 to 256")]
Concurrency: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=10_000, description="a whole number from 1 to 10000")]
Megabytes: TypeAlias = Annotated[
    int, msgspec.Meta(ge=16, le=1024 * 1024, description="a whole number of megabytes, from 16 to 1048576")
]
Megabytes64: TypeAlias = Annotated[
    int, msgspec.Meta(ge=1, le=64, description="a whole number of megabytes, from 1 to 64")
]
Switch: TypeAlias = Annotated[bool, msgspec.Meta(description="true or false")]
CacheSize: TypeAlias = Annotated[
    int, msgspec.Meta(ge=1, le=10_000_000, description="a whole number from 1 to 10000000")
]
Shards: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=64, description="a whole number from 1 to 64")]
Replicas: TypeAlias = Annotated[
    Literal[1, 3, 5], msgspec.Meta(description="1, 3 or 5 (replicas of a stream in a cluster)")
]
Port: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65535, description="a port number (0: a free one)")]
Sync: TypeAlias = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(always|[1-9][0-9]*(ms|s|m))\Z",
        description='"always", or the time between two syncs to disk, e.g. "10s" (a power cut then loses that much)',
    ),
]
Listen: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):[0-9]{1,5}\Z", description='"host:port"')
]
LogLevel: TypeAlias = Annotated[
    Literal["debug", "info", "warning", "error"],
    msgspec.Meta(description='"debug", "info", "warning" or "error"'),
]
LogFormat: TypeAlias = Annotated[Literal["text", "json"], msgspec.Meta(description='"text" or "json"')]


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``[supervisor]``.

    Attributes:
        namespace: the application's own part of the NATS account.
        modules: modules whose ``@workflow`` and ``@activity`` definitions are registered.
        roles: what this supervisor does.
        drain_timeout: seconds that running work is given after the first SIGTERM or SIGINT.
        shutdown_grace: seconds that children are given to exit by themselves once nothing runs any more.
        start_timeout: seconds a child may take to import the modules.
        state_dir: directory of the member slots; default: the embedded server's ``data_dir``.
        lease_s: seconds without a renewal after which a shard changes hands.
    """

    namespace: Name = "default"
    modules: Modules = ()
    roles: Roles = ("workflows", "activities")
    drain_timeout: Seconds = 30.0
    shutdown_grace: Seconds = 10.0
    start_timeout: PositiveSeconds = 60.0
    state_dir: FilePath | None = None
    lease_s: PositiveSeconds = 5.0


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``[nats.tls]``: PEM files. ``ca`` verifies the server, ``cert`` and ``key`` are this side's own."""

    ca: FilePath | None = None
    cert: FilePath | None = None
    key: FilePath | None = None


class EmbeddedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``[nats.embedded]``: the server that is run when no ``[nats] url`` is given.

    Attributes:
        data_dir: where JetStream keeps its files.
        sync: ``"always"``: every message is on disk before it is acknowledged; else the time between two syncs.
        binary: another nats-server than the installed one.
        host: interface to listen on.
        port: 0: a free one, kept over restarts.
        max_payload_mb: largest message in MiB.
    """

    data_dir: FilePath = ".durablefuture"
    sync: Sync = "always"
    binary: Text | None = None
    host: Text = "127.0.0.1"
    port: Port = 0
    max_payload_mb: Megabytes64 = 8


class NatsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``[nats]``.

    Attributes:
        url: one URL or several with commas; None: the embedded server is used.
        credentials: path of a ``.creds`` file.
        user, password: instead of credentials.
        connect_timeout: seconds that the first connection may take.
        replicas: copies of each stream.
        shards: number of shards of a namespace that does not exist yet.
    """

    url: Text | None = None
    credentials: FilePath | None = None
    user: Text | None = None
    password: Text | None = None
    tls: TlsSettings | None = None
    connect_timeout: PositiveSeconds = 10.0
    replicas: Replicas = 1
    shards: Shards = 4
    embedded: EmbeddedSettings = EmbeddedSettings()

    @property
    def urls(self) -> tuple[str, ...]:
        """The URLs one by one; empty when the embedded server is used."""
        return tuple(url.strip() for url in self.url.split(",")) if self.url else ()


class SandboxSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``[sandbox]``: the replay processes.

    Attributes:
        processes: how many.
        memory_limit_mb: address space each may use beyond what it has after its imports, in MiB.
        activation_timeout: seconds of CPU one activation may take before it counts as a deadlock.
        replay_timeout: the same for one stimulus while history is replayed, and for reading a chunk of history.
        cached_workflows: runs each keeps in memory.
        paranoid: replay every activation in another process, and block a run in which that goes differently.
    """

    processes: Processes = 1
    memory_limit_mb: Megabytes = 512
    activation_timeout: PositiveSeconds = 2.0
    replay_timeout: PositiveSeconds = 30.0
    cached_workflows: CacheSize = 1000
    paranoid: Switch = False


class ActivityPoolSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One ``[[activity_pool]]``: the processes that serve a task queue.

    Attributes:
        processes: how many.
        concurrency: activities at once in each.
        grace_period: seconds between a timeout or cancel and the SIGKILL of a process that does not heed it.
        memory_limit_mb: address space each may use beyond what it has after its imports, in MiB; None: no limit.
    """

    task_queue: QueueName = "default"
    processes: Processes = 2
    concurrency: Concurrency = 100
    grace_period: Seconds = 10.0
    memory_limit_mb: Megabytes | None = None


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``[http]``: where health, metrics and the dashboard listen; None: nowhere."""

    listen: Listen | None = None


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``[log]``: what is written to stderr, and how."""

    level: LogLevel = "info"
    format: LogFormat = "text"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration.

    Attributes:
        activity_pool: the ``[[activity_pool]]`` tables; none in the file means one with the defaults.
        path: the file it was read from, absolute; "" when there is none.
    """

    supervisor: SupervisorSettings = SupervisorSettings()
    nats: NatsSettings = NatsSettings()
    sandbox: SandboxSettings = SandboxSettings()
    activity_pool: tuple[ActivityPoolSettings, ...] = (ActivityPoolSettings(),)
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    path: Annotated[str, msgspec.Meta(extra=NOT_A_KEY)] = ""

    @property
    def namespace_dir(self) -> str:
        """Directory of this namespace's member slots."""
        state_dir = self.supervisor.state_dir or self.nats.embedded.data_dir
        return os.path.join(state_dir, "namespaces", token(self.supervisor.namespace))

    @property
    def import_path(self) -> tuple[str, ...]:
        """The import path of child processes: the directory of the file, the working directory, this process' own."""
        first = [os.path.dirname(self.path)] if self.path else []
        return tuple(dict.fromkeys([*first, os.getcwd(), *(entry for entry in sys.path if entry)]))


def load_settings(
    path: str | os.PathLike[str] | None, environ: Mapping[str, str] = os.environ, *, check_modules: bool = True
) -> Settings:
    """Read the configuration.

    Args:
        path: the TOML file; None: the defaults, and the environment.
        environ: the environment, whose ``DURABLEFUTURE_*`` variables override the file.
        check_modules: also refuse an empty list of modules and modules that cannot be found (they are not imported).
            Programs that only want to know where NATS is pass False.

    Raises:
        ConfigError: with every problem found, each with its file, line and key.
    """
    file = os.fspath(path) if path is not None else ""
    report = Report(file)
    document = read_document(file, report) if file else {}
    overlay_environment(document, Settings, environ, report)
    file_dir = os.path.dirname(os.path.abspath(file)) if file else os.getcwd()
    read = TableReader(report, Settings, file_dir).read(Settings, document)
    settings = msgspec.structs.replace(read, path=os.path.abspath(file) if file else "")
    check_settings(settings, report, check_modules=check_modules)
    report.raise_if_any()
    return settings


def render_settings(settings: Settings) -> str:
    """The effective configuration as TOML. Passwords are masked."""
    return render(settings)
