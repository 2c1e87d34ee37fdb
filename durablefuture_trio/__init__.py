"""Durable execution for Python: ordinary Trio programs that survive the death of any process, on NATS JetStream."""

from durablefuture_trio._version import __version__

__all__ = ["__version__"]
