"""The opaque envelope of a user value, and the record of a failure."""

from __future__ import annotations

import msgspec

WARN_PAYLOAD_BYTES = 256 * 1024
"""A payload above this is logged as a warning where it is made."""

MAX_PAYLOAD_BYTES = 2 * 1024 * 1024
"""The default limit of one payload, in bytes."""


class Payload(msgspec.Struct, frozen=True, array_like=True):
    """Encoded user values. Only clients and child processes look inside; to everything else it is bytes.

    Attributes:
        data: the encoded bytes.
        encoding: how they were encoded; ``"json"`` is orjson with the type rules of `codec`.
    """

    data: bytes
    encoding: str = "json"

    @property
    def size_bytes(self) -> int:
        return len(self.data)


class Failure(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An exception as the history keeps it.

    Attributes:
        type: the class name, or the ``type`` of an `ApplicationError`; non-retryable types are matched against it.
        message: ``str(exception)``.
        traceback: the formatted traceback, for people; never parsed.
        details: the encoded ``details`` of an `ApplicationError`.
        non_retryable: the raiser asked for no further attempt.
        next_retry_delay: seconds the raiser asked for before the next attempt.
        mro: names of the classes the exception's type inherits from, so that a base class can be non-retryable too.
        cause: the ``__cause__`` or unsuppressed ``__context__``.
        members: the failures inside an exception group.
        info: structured attributes of engine errors (`ActivityError` and the like), to rebuild them.
    """

    type: str
    message: str
    traceback: str = ""
    details: Payload | None = None
    non_retryable: bool = False
    next_retry_delay: float | None = None
    mro: tuple[str, ...] = ()
    cause: Failure | None = None
    members: tuple[Failure, ...] = ()
    info: dict[str, str | int | float | None] = {}
