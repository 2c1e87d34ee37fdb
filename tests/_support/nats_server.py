"""A real nats-server for tests: own port, own store, ends with the test."""

from __future__ import annotations

from simulator.storm.nats_server import NatsServer, nats_server

__all__ = ["NatsServer", "nats_server"]
