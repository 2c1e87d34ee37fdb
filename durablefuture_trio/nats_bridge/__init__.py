"""The bridge to NATS: the only home of nats-py, asyncio and trio-asyncio."""
