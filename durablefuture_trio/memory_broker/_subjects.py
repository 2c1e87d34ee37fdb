"""NATS subjects: matching and overlap of patterns with ``*`` and ``>``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from durablefuture_trio.ports.broker import NO_HEADERS, Headers

_MAX_SUBJECT_CHARS = 900
_SUBJECT = re.compile(r"[^\s\x00-\x20\x7f]+")
_HEADER_NAME = re.compile(r"[!-9;-~]+")
_LINE_BREAK = re.compile(r"[\r\n]")


def check_sendable(subject: str, headers: Headers = NO_HEADERS) -> None:
    """Refuse what the NATS protocol has no way to send.

    Raises:
        ValueError: the subject is empty, too long, or has white space; a name or value of a header is not one line.
    """
    if len(subject) > _MAX_SUBJECT_CHARS or not _SUBJECT.fullmatch(subject):
        raise ValueError(f"not a NATS subject, or one of more than {_MAX_SUBJECT_CHARS} characters: {subject!r}")
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or _LINE_BREAK.search(value):
            raise ValueError(f"not a NATS header: {name!r}: {value!r}")


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
