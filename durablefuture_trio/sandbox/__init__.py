"""The replay child: real Trio stepped by hand, deterministic and guarded. It loads neither nats nor asyncio."""
