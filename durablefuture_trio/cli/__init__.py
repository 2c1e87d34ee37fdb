"""The command line: ``durablefuture`` and ``durablefuture-supervisor``. Each imports only what it needs."""

from __future__ import annotations

from importlib import import_module


def main() -> int:
    """The ``durablefuture`` command; returns the exit code."""
    code: int = import_module("durablefuture_trio.cli._client").main()
    return code


def supervisor_main() -> int:
    """The ``durablefuture-supervisor`` command; returns the exit code."""
    code: int = import_module("durablefuture_trio.cli._supervisor").supervisor_main()
    return code
