"""The client: start workflows, wait for their results, look at them."""

from durablefuture_trio.client._client import Client, StartOptions, open_client
from durablefuture_trio.client._handle import WorkflowHandle
from durablefuture_trio.client._records import HistoryEvent, PendingActivity, WorkflowDescription

__all__ = [
    "Client",
    "HistoryEvent",
    "PendingActivity",
    "StartOptions",
    "WorkflowDescription",
    "WorkflowHandle",
    "open_client",
]
