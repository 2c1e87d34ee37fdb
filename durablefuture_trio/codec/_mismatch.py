"""What goes wrong between a payload and a hint, before it is worded for people."""

from __future__ import annotations

from typing import Any


class Mismatch(Exception):
    """The data is not what the hint wants. ``steps`` is the way into the value, innermost first."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.steps: list[str] = []

    def at(self, step: str) -> Mismatch:
        """Note one step outwards; returns itself for ``raise``."""
        self.steps.append(step)
        return self

    @property
    def path(self) -> str:
        """The place in the value, from outside: ``[0].items[3].when``."""
        return "".join(reversed(self.steps))


class HintError(TypeError):
    """No value can be rebuilt from this hint. The text says why and what to do."""


_NAMES = {str: "text", int: "an integer", float: "a number", bool: "a boolean", list: "an array", dict: "an object"}


def described(data: Any) -> str:
    """What `data` is, in JSON's words, shortened."""
    if data is None:
        return "null"
    text = repr(data)
    shown = text if len(text) <= 60 else f"{text[:57]}…"
    return f"{_NAMES.get(type(data), type(data).__name__)} {shown}"


def expected(what: str, data: Any) -> Mismatch:
    """The usual mismatch."""
    return Mismatch(f"expected {what}, found {described(data)}")
