"""What clients were told, kept so that a client that is killed and started again does not ask anew what it knows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from simulator.oracle import EndTold, StartTold, TerminateTold, Told

_KINDS: dict[str, type[Told]] = {kind.__name__: kind for kind in (StartTold, EndTold, TerminateTold)}


class _Line(msgspec.Struct, frozen=True):
    kind: str
    fields: dict[str, object]


class Words:
    """The words that one process was told.

    Attributes:
        told: in their order.
        errors: what clients raised that nobody expects, in words.

    Args:
        path: a file that gets a line for each, in one write: what was written stays written when the process is killed.
            What it holds already was told to an earlier life.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.told: list[Told] = []
        self.errors: list[str] = []
        self._decisions: dict[str, StartTold | TerminateTold] = {}
        self._path = path
        if path is not None and path.exists():
            for line in path.read_bytes().splitlines():
                self._take(msgspec.json.decode(line, type=_Line))

    def add(self, word: Told) -> None:
        """A client was told this."""
        self._keep(word)
        self._write(_Line(type(word).__name__, asdict(word)))

    def fail(self, error: str) -> None:
        """A client raised what nobody expects."""
        self.errors.append(error)
        self._write(_Line("error", {"words": error}))

    def decision(self, request_id: str) -> StartTold | TerminateTold | None:
        """What was told about a request, if it was."""
        return self._decisions.get(request_id)

    def _take(self, line: _Line) -> None:
        if line.kind == "error":
            self.errors.append(str(line.fields["words"]))
        else:
            self._keep(msgspec.convert(line.fields, _KINDS[line.kind]))

    def _keep(self, word: Told) -> None:
        self.told.append(word)
        if isinstance(word, StartTold | TerminateTold):
            self._decisions[word.request_id] = word

    def _write(self, line: _Line) -> None:
        if self._path is None:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(line) + b"\n")
        finally:
            os.close(descriptor)


def all_told(words: Sequence[Words]) -> list[Told]:
    """Of all of them."""
    return [word for each in words for word in each.told]
