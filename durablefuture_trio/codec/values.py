"""Encoding and decoding of user values."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from durablefuture_trio.codec._compiler import MAX_CACHED_HINTS, Compiler
from durablefuture_trio.codec._converter import Converter
from durablefuture_trio.codec._encode import dump, has_non_finite
from durablefuture_trio.codec._mismatch import HintError, Mismatch, described
from durablefuture_trio.codec._tagged import TAGGED, tagged_dump, tagged_load
from durablefuture_trio.codec.payload import MAX_PAYLOAD_BYTES, WARN_PAYLOAD_BYTES, Payload
from durablefuture_trio.errors import PayloadError

PLAIN = "json"

_log = logging.getLogger("durablefuture_trio.codec")
_compiler = Compiler()
_argument_converters: dict[tuple[Any, ...], tuple[Converter, ...]] = {}

_NULL = Payload(b"null")


def encode_value(value: Any, *, limit: int = MAX_PAYLOAD_BYTES) -> Payload:
    """One value as a payload.

    Args:
        limit: the largest payload allowed, in bytes.

    Raises:
        PayloadError: a value inside cannot be encoded (``path`` says where), or the payload is over the limit.
    """
    if value is None:
        return _NULL
    return _encode(value, limit, "the value")


def encode_arguments(args: tuple[Any, ...], *, limit: int = MAX_PAYLOAD_BYTES) -> Payload:
    """The positional arguments of a call as one payload: a JSON array.

    Raises:
        PayloadError: as `encode_value`.
    """
    return _encode(args, limit, "the arguments")


def decode_value(payload: Payload, hint: Any) -> Any:
    """The value of a payload, rebuilt as `hint` says.

    Raises:
        PayloadError: it is not what the hint wants (``path`` says where), or no value can be rebuilt from the hint.
    """
    converter = _converter(hint)
    data = _load(payload)
    if converter.convert is None:
        return data
    try:
        return converter.convert(data)
    except Mismatch as mismatch:
        raise _payload_error(mismatch) from mismatch
    except HintError as error:
        raise PayloadError(str(error), path="$") from error


def decode_arguments(payload: Payload, hints: Sequence[Any]) -> tuple[Any, ...]:
    """The positional arguments of a payload, each rebuilt by its hint; trailing ones may be missing.

    Raises:
        PayloadError: as `decode_value`, or there are more arguments than hints.
    """
    key = tuple(hints)
    try:
        converters = _argument_converters.get(key)
    except TypeError:
        converters = tuple(map(_converter, key))
    if converters is None:
        converters = tuple(map(_converter, key))
        if len(_argument_converters) >= MAX_CACHED_HINTS:
            _argument_converters.clear()
        _argument_converters[key] = converters
    data = _load(payload)
    if data.__class__ is not list:
        raise PayloadError(f"$: expected an array of arguments, found {described(data)}", path="$")
    if len(data) > len(converters):
        raise PayloadError(f"$: expected at most {len(converters)} arguments, found {len(data)}", path="$")
    rebuilt = []
    for index, value in enumerate(data):
        converter = converters[index]
        if value.__class__ is converter.exact or converter.convert is None:
            rebuilt.append(value)
            continue
        try:
            rebuilt.append(converter.convert(value))
        except Mismatch as mismatch:
            raise _payload_error(mismatch.at(f"[{index}]")) from mismatch
        except HintError as error:
            raise PayloadError(str(error), path=f"$[{index}]") from error
    return tuple(rebuilt)


def check_hint(hint: Any, local_names: Mapping[str, Any] | None = None) -> None:
    """Compile the converter of `hint`, with everything it refers to.

    Args:
        local_names: names that annotations of the classes inside may use besides those of their modules.

    Raises:
        TypeError: no value can be rebuilt from it; the message says why and what to do.
    """
    compiler = _compiler.with_local_names(local_names) if local_names else _compiler
    converter = compiler.compile(hint)
    if converter.prepare is not None:
        converter.prepare()


def _encode(value: Any, limit: int, what: str) -> Payload:
    try:
        data = dump(value)
    except Exception:  # noqa: BLE001 - whatever a property or serializer of a user's class raises is worded below
        payload = Payload(tagged_dump(value), TAGGED)
    else:
        # orjson writes a NaN or an infinity as null.
        if b"null" in data and has_non_finite(value):
            payload = Payload(tagged_dump(value), TAGGED)
        else:
            payload = Payload(data)
    size = len(payload.data)
    if size > WARN_PAYLOAD_BYTES or size > limit:
        _check_size(size, limit, what)
    return payload


def _check_size(size: int, limit: int, what: str) -> None:
    if size > limit:
        raise PayloadError(
            f"{what} would take {size} bytes; the limit of a payload is {limit} bytes: store large data elsewhere and "
            "pass a reference to it",
            path="$",
            size_bytes=size,
            limit_bytes=limit,
        )
    _log.warning(
        "%s take %d bytes, more than %d: every replay reads them again; consider storing large data elsewhere",
        what,
        size,
        WARN_PAYLOAD_BYTES,
    )


def _load(payload: Payload) -> Any:
    try:
        if payload.encoding == PLAIN:
            return orjson.loads(payload.data)
        if payload.encoding == TAGGED:
            return tagged_load(payload.data)
    except ValueError as error:
        raise PayloadError(f"the payload is not {payload.encoding}: {error}", path="$") from error
    raise PayloadError(
        f"the payload is encoded as {payload.encoding!r}, which this version does not know: decode it with the version "
        "that made it",
        path="$",
    )


def _converter(hint: Any) -> Converter:
    try:
        return _compiler.compile(hint)
    except HintError as error:
        raise PayloadError(str(error), path="$") from error


def _payload_error(mismatch: Mismatch) -> PayloadError:
    path = f"${mismatch.path}"
    return PayloadError(f"{path}: {mismatch.problem}", path=path)
