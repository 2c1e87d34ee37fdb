"""The bridge to NATS: the only home of nats-py, asyncio and trio-asyncio."""

from durablefuture_trio.nats_bridge.broker import NatsBroker, open_broker
from durablefuture_trio.nats_bridge.options import ConnectOptions

__all__ = ["ConnectOptions", "NatsBroker", "open_broker"]
