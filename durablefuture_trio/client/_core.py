"""What a client and its handles share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from durablefuture_trio.client._closing import Closings
from durablefuture_trio.client._requests import Requests
from durablefuture_trio.ports.broker import Broker
from durablefuture_trio.protocol.loading import HistoryReader
from durablefuture_trio.protocol.subjects import Subjects


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """The parts of one client. ``clock`` gives Unix seconds."""

    broker: Broker
    subjects: Subjects
    reader: HistoryReader
    requests: Requests
    closings: Closings
    clock: Callable[[], float]
