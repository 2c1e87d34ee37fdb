"""Names in NATS: streams, subjects, consumers of one namespace."""

from __future__ import annotations

import re

from durablefuture_trio._ids import shard_of, token
from durablefuture_trio.errors import ConfigError
from durablefuture_trio.ports.broker import StreamSpec

_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_namespace(namespace: str) -> None:
    """Refuse what cannot be part of a stream name.

    Raises:
        ConfigError: other characters than letters, digits, ``-`` and ``_``, or more than 64 of them.
    """
    if not _NAMESPACE.fullmatch(namespace):
        raise ConfigError(
            [f"namespace {namespace!r}: use 1 to 64 letters, digits, '-' or '_' (it becomes part of stream names)"]
        )


class Subjects:
    """All names of a namespace with a known number of shards."""

    def __init__(self, namespace: str, shards: int) -> None:
        check_namespace(namespace)
        self.namespace = namespace
        self.shards = shards
        self.tasks_stream = f"DF_{namespace}_T"
        self.projection_stream = f"DF_{namespace}_R"
        self.lease_stream = lease_stream(namespace)
        self.dead_stream = f"DF_{namespace}_D"

    def shard_of(self, workflow_id: str) -> int:
        """The shard of a workflow id."""
        return shard_of(workflow_id, self.shards)

    def history_stream(self, shard: int) -> str:
        """Stream of the shard's histories."""
        return f"DF_{self.namespace}_H{shard}"

    def inbox_stream(self, shard: int) -> str:
        """Stream of the shard's inbox and schedules."""
        return f"DF_{self.namespace}_W{shard}"

    def history_prefix(self, workflow_id: str) -> str:
        """What every history subject of the id begins with; a commit number follows."""
        return f"df.{self.namespace}.h.{self.shard_of(workflow_id)}.{token(workflow_id)}."

    def history(self, workflow_id: str, n: int) -> str:
        """Subject of commit `n`."""
        return f"{self.history_prefix(workflow_id)}{n}"

    def inbox(self, workflow_id: str, kind: str) -> str:
        """Subject of an inbox message."""
        return f"df.{self.namespace}.w.{self.shard_of(workflow_id)}.{token(workflow_id)}.{kind}"

    def inbox_filter(self, shard: int) -> str:
        """All inbox messages of a shard."""
        return f"df.{self.namespace}.w.{shard}.>"

    def schedule(self, workflow_id: str, n: int) -> str:
        """Subject of the schedule armed by commit `n`."""
        return f"df.{self.namespace}.s.{self.shard_of(workflow_id)}.{token(workflow_id)}.{n}"

    def schedule_filter(self, shard: int) -> str:
        """All schedules of a shard."""
        return f"df.{self.namespace}.s.{shard}.>"

    def projection(self, workflow_id: str) -> str:
        """Subject of the listing record."""
        return f"df.{self.namespace}.r.{self.shard_of(workflow_id)}.{token(workflow_id)}"

    @property
    def projection_filter(self) -> str:
        """All listing records."""
        return f"df.{self.namespace}.r.>"

    def lease(self, shard: int) -> str:
        """Subject of the shard's lease."""
        return f"df.{self.namespace}.l.{shard}"

    def caution(self, shard: int) -> str:
        """Subject of what the shard's owners leave to those who come after them."""
        return f"df.{self.namespace}.c.{shard}"

    def member(self, name: str) -> str:
        """Subject of a member's heartbeat."""
        return f"df.{self.namespace}.m.{token(name)}"

    @property
    def member_filter(self) -> str:
        """All members' heartbeats."""
        return f"df.{self.namespace}.m.*"

    def dead_letter(self, shard: int) -> str:
        """Subject of dead letters of a shard."""
        return f"df.{self.namespace}.d.{shard}"

    def closed_hint(self, workflow_id: str) -> str:
        """Core subject on which the close of a run is told; a hint only."""
        return f"dfc.{self.namespace}.c.{self.shard_of(workflow_id)}.{token(workflow_id)}"

    def queries(self, shard: int) -> str:
        """Core subject on which the owner of a shard is asked; stored nowhere."""
        return f"dfc.{self.namespace}.q.{shard}"

    def answers(self, client: str) -> str:
        """Core subject filter for the answers to one client."""
        return f"dfc.{self.namespace}.a.{client}.*"

    def answer(self, client: str, request_id: str) -> str:
        """Core subject of one answer; travels in the request's reply header."""
        return f"dfc.{self.namespace}.a.{client}.{request_id}"


def lease_stream(namespace: str) -> str:
    """The stream of the namespace record, leases and members. It exists before the number of shards is known."""
    return f"DF_{namespace}_L"


def namespace_record(namespace: str) -> str:
    """Subject of the namespace record."""
    return f"df.{namespace}.n"


def lease_stream_spec(namespace: str, replicas: int = 1) -> StreamSpec:
    """The stream that must exist before the namespace record can be written."""
    return StreamSpec(
        name=lease_stream(namespace),
        subjects=tuple(f"df.{namespace}.{kind}" for kind in ("n", "l.*", "m.*", "c.*", "b.>")),
        last_per_subject=True,
        replicas=replicas,
    )


def stream_specs(subjects: Subjects, replicas: int = 1) -> list[StreamSpec]:
    """Every other stream of the namespace."""
    ns = subjects.namespace
    specs: list[StreamSpec] = []
    for shard in range(subjects.shards):
        specs.append(
            StreamSpec(name=subjects.history_stream(shard), subjects=(f"df.{ns}.h.{shard}.>",), replicas=replicas)
        )
        specs.append(
            StreamSpec(
                name=subjects.inbox_stream(shard),
                subjects=(f"df.{ns}.w.{shard}.>", f"df.{ns}.s.{shard}.>"),
                retention="workqueue",
                schedules=True,
                replicas=replicas,
            )
        )
    specs.append(
        StreamSpec(name=subjects.tasks_stream, subjects=(f"df.{ns}.t.>",), retention="workqueue", replicas=replicas)
    )
    specs.append(
        StreamSpec(
            name=subjects.projection_stream, subjects=(f"df.{ns}.r.>",), last_per_subject=True, replicas=replicas
        )
    )
    specs.append(StreamSpec(name=subjects.dead_stream, subjects=(f"df.{ns}.d.>",), replicas=replicas))
    return specs
