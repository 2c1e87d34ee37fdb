"""Exceptions as failure records, and back."""

from __future__ import annotations

import os
import traceback
from importlib.util import find_spec
from inspect import get_annotations
from typing import Any

from durablefuture_trio import errors
from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.codec.values import decode_value, encode_arguments
from durablefuture_trio.errors import ApplicationError, DurableFutureError, PayloadError

MAX_MESSAGE_CHARS = 16 * 1024
"""The longest failure message that is kept; the middle of a longer one is left out."""

MAX_TRACEBACK_CHARS = 16 * 1024
"""The longest traceback text that is kept, for each exception of a chain."""

MAX_FRAMES = 50
"""How many frames of a traceback are kept, the innermost ones."""

MAX_CHAIN = 8
"""How many causes of causes are kept."""

MAX_MEMBERS = 20
"""How many members of an exception group are kept."""

_ENGINE_ERRORS: dict[str, type[DurableFutureError]] = {
    cls.__name__: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, DurableFutureError) and cls is not ApplicationError
}

_MAX_NOTES = 12

_MACHINERY = tuple(
    f"{os.path.dirname(found.origin)}{os.sep}"
    for found in map(find_spec, ("durablefuture_trio", "trio", "outcome"))
    if found is not None and found.origin is not None
)


def failure_of(exc: BaseException) -> Failure:
    """The record of an exception.

    An exception group with a single leaf is recorded as that leaf: strict nurseries wrap everything, and nobody wants
    to match against the wrapping. ``details`` that cannot be encoded are left out, and the traceback text says so.

    Args:
        exc: what was raised; need not have been caught in this process's own frames.
    """
    return _failure(exc, MAX_CHAIN, set())


def exception_of(failure: Failure) -> BaseException:
    """The exception a record is rebuilt as.

    Errors of durablefuture_trio come back as themselves, exception groups as groups, everything else as an
    `ApplicationError` whose ``type`` is the name of the class that was raised. The cause is ``__cause__`` (and
    ``cause``, where the class has that attribute).
    """
    cause = exception_of(failure.cause) if failure.cause is not None else None
    rebuilt = _rebuilt(failure, cause)
    rebuilt.__cause__ = cause
    return rebuilt


def single_leaf(exc: BaseException) -> BaseException:
    """`exc`, or the only exception inside it if it is a group (of groups …) with a single leaf."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def _failure(exc: BaseException, chain: int, seen: set[int]) -> Failure:
    exc = single_leaf(exc)
    seen.add(id(exc))
    cause = _cause_of(exc)
    if cause is not None and (chain <= 1 or id(cause) in seen):
        cause = None
    members: tuple[Failure, ...] = ()
    if isinstance(exc, BaseExceptionGroup) and chain > 1:
        members = tuple(_failure(member, chain - 1, seen) for member in exc.exceptions[:MAX_MEMBERS])
    text = _traceback_text(exc)
    details = None
    worded = exc if isinstance(exc, ApplicationError) else None
    if worded is not None and worded.details:
        try:
            details = encode_arguments(worded.details)
        except PayloadError as error:
            text += f"(the details of this error could not be encoded: {error})\n"
    if worded is not None and worded.traceback_text:
        # Raised on from another process: the place where it began matters most.
        text = _shortened(f"{worded.traceback_text.rstrip()}\n\nRaised again at:\n{text}", MAX_TRACEBACK_CHARS)
    return Failure(
        type=_type_name(exc),
        message=_message(exc),
        traceback=text,
        details=details,
        non_retryable=worded.non_retryable if worded is not None else isinstance(exc, PayloadError),
        next_retry_delay=worded.next_retry_delay if worded is not None else None,
        mro=tuple(cls.__name__ for cls in type(exc).__mro__ if cls is not object),
        cause=_failure(cause, chain - 1, seen) if cause is not None else None,
        members=members,
        info=_info(exc),
    )


def _cause_of(exc: BaseException) -> BaseException | None:
    cause = exc.__cause__
    if cause is None:
        attribute = getattr(exc, "cause", None)
        if isinstance(exc, DurableFutureError) and isinstance(attribute, BaseException):
            return attribute
        if not exc.__suppress_context__:
            cause = exc.__context__
    return cause


def _type_name(exc: BaseException) -> str:
    if isinstance(exc, ApplicationError):
        # A subclass that gives no type of its own is known by its name.
        return exc.type if exc.type != "ApplicationError" else type(exc).__name__
    return type(exc).__name__


def _message(exc: BaseException) -> str:
    if isinstance(exc, (DurableFutureError, BaseExceptionGroup)):
        text = exc.message
    else:
        try:
            text = str(exc)
        except Exception as error:  # noqa: BLE001 - the __str__ of a user's class must not hide the failure itself
            text = f"(the message could not be made: {type(error).__name__})"
    return _encodable(_shortened(text, MAX_MESSAGE_CHARS))


def _traceback_text(exc: BaseException) -> str:
    frames = traceback.extract_tb(exc.__traceback__, limit=-MAX_FRAMES)
    lines = traceback.format_list(_from_user_code_on(frames))
    notes = getattr(exc, "__notes__", ())
    if isinstance(notes, (list, tuple)):
        lines.extend(f"{note}\n" for note in notes[:_MAX_NOTES])
    return _encodable(_shortened("".join(lines), MAX_TRACEBACK_CHARS))


def _from_user_code_on(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Without the frames of the machinery that called the user's function."""
    for index, frame in enumerate(frames):
        if not frame.filename.startswith(_MACHINERY):
            return frames[index:]
    return frames


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2 - 20
    return f"{text[:half]}\n… {len(text) - 2 * half} characters …\n{text[-half:]}"


def _encodable(text: str) -> str:
    # Lone surrogates have no UTF-8, and file names that are no text bring them into messages.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _info(exc: BaseException) -> dict[str, str | int | float | None]:
    if not isinstance(exc, DurableFutureError) or isinstance(exc, ApplicationError):
        return {}
    plain: dict[str, str | int | float | None] = {}
    for name, value in vars(exc).items():
        if name in {"message", "cause"} or name.startswith("_"):
            continue
        if value is None or isinstance(value, (str, int, float)):
            plain[name] = value
        elif isinstance(value, tuple):
            plain[name] = "\n".join(map(str, value))
    return plain


def _rebuilt(failure: Failure, cause: BaseException | None) -> BaseException:
    if failure.members:
        members = [exception_of(member) for member in failure.members]
        return BaseExceptionGroup(failure.message, members)
    engine_error = _ENGINE_ERRORS.get(failure.type)
    # A user's class may have the same name; only the engine's own descend from DurableFutureError.
    if engine_error is not None and (not failure.mro or "DurableFutureError" in failure.mro):
        return _engine_error(engine_error, failure, cause)
    error = ApplicationError(
        failure.message,
        type=failure.type,
        details=_details(failure),
        non_retryable=failure.non_retryable,
        next_retry_delay=failure.next_retry_delay,
    )
    error.traceback_text = failure.traceback
    return error


def _engine_error(cls: type[DurableFutureError], failure: Failure, cause: BaseException | None) -> DurableFutureError:
    attributes: dict[str, Any] = dict(failure.info)
    if issubclass(cls, errors.ConfigError):
        return cls(str(attributes.get("problems", failure.message)).split("\n"))
    if "cause" in _annotated(cls):
        attributes["cause"] = cause
    return cls(failure.message, **attributes)


def _annotated(cls: type) -> set[str]:
    return {name for base in cls.__mro__ for name in get_annotations(base)}


def _details(failure: Failure) -> tuple[Any, ...]:
    if failure.details is None:
        return ()
    details = decode_value(failure.details, list[Any])
    return tuple(details)
