"""A model of JetStream in memory, at its worst: late publishes, lost acknowledgements, stale reads, racing fires.

`MemoryServer` is the server, `MemoryServer.connect` gives each process its own link to it, `FaultPlan` says what goes
wrong. Nothing here does any input or output; all time comes from a `Scheduler`, all chance from one `random.Random`, so
the same calls with the same seed give the same trace.

    async with open_trio_scheduler() as scheduler:
        server = MemoryServer(scheduler)
        broker = server.connect("A")
        await broker.provision([StreamSpec(name="H", subjects=("h.>",))])
"""

from __future__ import annotations

from durablefuture_trio.memory_broker._broker import MemoryBroker
from durablefuture_trio.memory_broker._faults import (
    INJECTED_KINDS,
    AckFate,
    AppendFate,
    DeliveryFate,
    FaultPlan,
    FireFate,
    ReadFate,
)
from durablefuture_trio.memory_broker._link import MemoryLink
from durablefuture_trio.memory_broker._reader import MemoryReader
from durablefuture_trio.memory_broker._schedulers import (
    Process,
    Scheduler,
    TrioScheduler,
    VirtualScheduler,
    open_trio_scheduler,
)
from durablefuture_trio.memory_broker._server import MemoryServer

__all__ = [
    "INJECTED_KINDS",
    "AckFate",
    "AppendFate",
    "DeliveryFate",
    "FaultPlan",
    "FireFate",
    "MemoryBroker",
    "MemoryLink",
    "MemoryReader",
    "MemoryServer",
    "Process",
    "ReadFate",
    "Scheduler",
    "TrioScheduler",
    "VirtualScheduler",
    "open_trio_scheduler",
]
