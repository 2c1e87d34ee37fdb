"""The second encoding, for the few values that plain JSON cannot hold.

Plain JSON has no NaN, no infinities, no integer beyond 64 bits, no lone surrogate and no key that is not a string. A
payload with any of these is encoded as ``json+tags``: still JSON, in which an object with the single key ``$float``,
``$int``, ``$text`` or ``$map`` stands for such a value, and a ``$`` at the start of any other key is doubled. Decoding
gives the same Python values, whatever the hint.
"""

from __future__ import annotations

import base64
from math import isfinite
from typing import Any

import orjson

from durablefuture_trio.codec._encode import NotEncodable, simplify
from durablefuture_trio.errors import PayloadError

TAGGED = "json+tags"

# orjson gives up at 254 levels; a tag can add two levels to one of the value's.
_MAX_DEPTH = 250
_SMALLEST = -(2**63)
_LARGEST = 2**64 - 1


class Pairs(list[list[Any]]):
    """The key-value pairs of a dict whose keys were not hashable before they are rebuilt from a hint."""


def tagged_dump(value: Any) -> bytes:
    """The tagged JSON of `value`.

    Raises:
        PayloadError: it cannot be encoded at all; ``path`` names the place.
    """
    try:
        return orjson.dumps(_tag(value, "$", 0))
    except TypeError as error:
        raise PayloadError(f"the value cannot be encoded: {error}", path="$") from error


def tagged_load(data: bytes) -> Any:
    """The plain Python values of tagged JSON: dicts, lists, strings, numbers (and `Pairs` where nothing else will do).

    Raises:
        ValueError: this is no tagged JSON.
    """
    return _untag(orjson.loads(data))


def _tag(value: Any, path: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise PayloadError(
            f"the value at {path[:200]}… is nested more than {_MAX_DEPTH} levels deep, or contains itself: flatten it",
            path=path,
        )
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return _tag_text(str.__str__(value))
    if isinstance(value, int):
        number = int(value)
        return number if _SMALLEST <= number <= _LARGEST else {"$int": hex(number)}
    if isinstance(value, float):
        return float(value) if isfinite(value) else {"$float": float.__repr__(value)}
    if isinstance(value, dict):
        return _tag_dict(value, path, depth)
    if value.__class__ is tuple or isinstance(value, list):
        return [_tag(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted((_tag(item, f"{path}{{}}", depth + 1) for item in value), key=orjson.dumps)
    return _tag(_simplified(value, path), path, depth + 1)


def _simplified(value: Any, path: str) -> Any:
    try:
        return simplify(value)
    except NotEncodable as error:
        raise PayloadError(f"{path}: {error}", path=path) from error
    except Exception as error:
        raise PayloadError(
            f"{path}: a value of type {type(value).__qualname__} could not be encoded: {error!r}", path=path
        ) from error


def _tag_text(text: str) -> Any:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return {"$text": base64.b64encode(text.encode("utf-8", "surrogatepass")).decode("ascii")}
    return text


def _tag_dict(value: dict[Any, Any], path: str, depth: int) -> Any:
    keys = [_tag(key, f"{path}.keys()", depth + 1) for key in value]
    items = [_tag(item, _item_path(path, key), depth + 1) for key, item in value.items()]
    if all(key.__class__ is str for key in keys) and len(set(keys)) == len(keys):
        return {f"${key}" if key.startswith("$") else key: item for key, item in zip(keys, items, strict=True)}
    return {"$map": [[key, item] for key, item in zip(keys, items, strict=True)]}


def _item_path(path: str, key: Any) -> str:
    return f"{path}.{key}" if isinstance(key, str) and key.isidentifier() else f"{path}[{key!r:.80}]"


def _untag(value: Any) -> Any:
    if isinstance(value, list):
        return [_untag(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(key, inner)] = value.items()
        if key.startswith("$") and not key.startswith("$$"):
            return _untag_value(key, inner)
    return {key[1:] if key.startswith("$$") else key: _untag(item) for key, item in value.items()}


def _untag_value(tag: str, inner: Any) -> Any:
    match tag, inner:
        case "$int", str():
            return int(inner, 16)
        case "$float", str():
            return float(inner)
        case "$text", str():
            return base64.b64decode(inner, validate=True).decode("utf-8", "surrogatepass")
        case "$map", list():
            pairs = [[_untag(key), _untag(item)] for key, item in inner]
            try:
                rebuilt = {_frozen(key): item for key, item in pairs}
            except TypeError:
                return Pairs(pairs)
            return rebuilt if len(rebuilt) == len(pairs) else Pairs(pairs)
    raise ValueError(f"unknown tag {tag!r}")


def _frozen(key: Any) -> Any:
    return tuple(map(_frozen, key)) if isinstance(key, list) else key
