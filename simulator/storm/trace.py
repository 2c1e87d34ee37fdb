"""What was done to whom, and when."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import msgspec


class Trace:
    """A file with a line for everything that was done, and counts of it by kind.

    Attributes:
        counts: how often each kind of disturbance was done.
    """

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._began_at = time.monotonic()

    def note(self, what: str, to: str) -> None:
        """Write it down."""
        line = {"at": round(time.monotonic() - self._began_at, 3), "time": time.time(), "what": what, "to": to}
        self._file.write(msgspec.json.encode(line).decode() + "\n")

    def disturbed(self, kind: str, to: str) -> None:
        """Write it down, and count it."""
        self.counts[kind] += 1
        self.note(kind, to)

    def close(self) -> None:
        """No more."""
        self._file.close()
