"""What happened, line by line: a digest that tells two lives apart, and text for people."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterable

from simulator.world import EPOCH, World

QUIET_KINDS = ("duplicate", "consumer created", "consumer deleted")


class Trace:
    """Everything that happens in a world.

    Args:
        keep: keep the lines; otherwise only the digest is made.
    """

    def __init__(self, world: World, *, keep: bool) -> None:
        self.lines: list[tuple[float, str, str]] = []
        self.failure = ""
        self._world = world
        self._keep = keep
        self._digest = hashlib.blake2b(digest_size=16)
        world.on_trace = self._heard
        world.server.on_trace = self._server_says

    @property
    def digest(self) -> str:
        """The same for two lives in which the same things happened at the same times."""
        return self._digest.hexdigest()

    def line(self, who: str, what: str) -> None:
        """Something happens now."""
        self._heard(self._world.now(), who, what)

    def failed(self, error: BaseException) -> None:
        """A process failed: how, for people."""
        self.failure = "".join(traceback.format_exception(error.__cause__ or error))

    def _server_says(self, at: float, who: str, what: str, subject: str) -> None:
        self._heard(at, who, f"{what} {subject}")

    def _heard(self, at: float, who: str, what: str) -> None:
        self._digest.update(f"{at:.9f} {who} {what}\n".encode())
        if self._keep:
            self.lines.append((at, who, what))

    def about(self, words: Iterable[str]) -> list[str]:
        """The lines that concern some of these words, and everything that was done to the cluster."""
        wanted = tuple(words)
        return [
            f"{at - EPOCH:10.4f} {who:10} {what}"
            for at, who, what in self.lines
            if who == "fate"
            or "ended" in what
            or "killed" in what
            or any(word in what or word == who for word in wanted)
        ]
