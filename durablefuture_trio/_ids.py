"""Ids: fresh ones, and their injective, bounded escaping into NATS subject tokens."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from zlib import crc32

MAX_ID_BYTES = 512
"""The longest workflow id, in UTF-8 bytes."""

MAX_TOKEN_CHARS = 160
"""The longest subject token an id is escaped to; longer escapes end in a digest."""

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


random_bytes: Callable[[int], bytes] = os.urandom
"""Where ids come from; simulations set a seeded source."""


def new_id() -> str:
    """A fresh random id: 32 hexadecimal digits."""
    return random_bytes(16).hex()


def token(text: str) -> str:
    """Escape `text` into one NATS subject token, injectively.

    Letters, digits, ``-`` and ``_`` stay; every other UTF-8 byte becomes ``=`` and two hexadecimal digits. An escape
    over `MAX_TOKEN_CHARS` is cut and ends in ``=~`` and a SHA-256 digest, which no shorter escape can contain.

    Raises:
        ValueError: `text` is empty.
    """
    if not text:
        raise ValueError("an id must not be empty")
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) <= MAX_TOKEN_CHARS and all(byte in _PLAIN for byte in raw):
        return text
    escaped = "".join(chr(byte) if byte in _PLAIN else f"={byte:02x}" for byte in raw)
    if len(escaped) > MAX_TOKEN_CHARS:
        return f"{escaped[: MAX_TOKEN_CHARS - 66]}=~{hashlib.sha256(raw).hexdigest()}"
    return escaped


def check_workflow_id(workflow_id: str) -> None:
    """Refuse an id that cannot be used.

    Raises:
        ValueError: empty, longer than `MAX_ID_BYTES`, or with control characters.
    """
    if not workflow_id or not isinstance(workflow_id, str):
        raise ValueError("a workflow id must be a non-empty string")
    size = len(workflow_id.encode("utf-8", "surrogatepass"))
    if size > MAX_ID_BYTES:
        raise ValueError(f"workflow id has {size} bytes; the limit is {MAX_ID_BYTES}: use a shorter id")
    if any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) <= 0xDFFF for char in workflow_id):
        raise ValueError("a workflow id must not contain control characters or lone surrogates")


def shard_of(workflow_id: str, shards: int) -> int:
    """The shard of a workflow id: CRC-32 of its UTF-8 bytes modulo the number of shards (the same in every process)."""
    return crc32(workflow_id.encode("utf-8", "surrogatepass")) % shards
