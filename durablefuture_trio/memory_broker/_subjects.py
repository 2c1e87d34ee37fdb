"""NATS subjects: matching and overlap of patterns with ``*`` and ``>``."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def is_literal(pattern: str) -> bool:
    """Whether the pattern has no wildcard."""
    return ">" not in pattern and "*" not in pattern


def literal_prefix(pattern: str) -> tuple[str, ...]:
    """The tokens before the first wildcard."""
    tokens: list[str] = []
    for token in pattern.split("."):
        if token in ("*", ">"):
            break
        tokens.append(token)
    return tuple(tokens)


def matcher(pattern: str) -> Callable[[str], bool]:
    """A function that tells whether a literal subject matches."""
    if is_literal(pattern):
        return pattern.__eq__
    if pattern == ">":
        return bool
    if pattern.endswith(".>") and is_literal(pattern[:-2]):
        head = pattern[:-1]
        return lambda subject: subject.startswith(head)
    wanted = pattern.split(".")
    return lambda subject: _matches(wanted, subject.split("."))


def _matches(wanted: Sequence[str], tokens: Sequence[str]) -> bool:
    for place, want in enumerate(wanted):
        if want == ">":
            return len(tokens) > place
        if place >= len(tokens) or (want not in ("*", tokens[place])):
            return False
    return len(tokens) == len(wanted)


def overlap(one: str, other: str) -> bool:
    """Whether some subject matches both patterns."""
    left, right = one.split("."), other.split(".")
    for place in range(max(len(left), len(right))):
        if place >= len(left) or place >= len(right):
            return False
        a, b = left[place], right[place]
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return True
