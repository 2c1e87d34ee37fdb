"""The client: start workflows, wait for their results, look at them."""

from durablefuture_trio.client._client import Client, StartOptions, open_client
from durablefuture_trio.client._connect import connect
from durablefuture_trio.client._handle import WorkflowHandle
from durablefuture_trio.client._records import (
    HistoryEvent,
    PendingActivity,
    PendingChild,
    PendingUpdate,
    WorkflowDescription,
)
from durablefuture_trio.client._status import MemberStatus, NamespaceStatus, ShardStatus

__all__ = [
    "Client",
    "HistoryEvent",
    "MemberStatus",
    "NamespaceStatus",
    "PendingActivity",
    "PendingChild",
    "PendingUpdate",
    "ShardStatus",
    "StartOptions",
    "WorkflowDescription",
    "WorkflowHandle",
    "connect",
    "open_client",
]
