"""Python values to JSON: orjson for what it knows, one function per class for the rest."""

from __future__ import annotations

import base64
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite
from pathlib import PurePath
from typing import Any
from uuid import UUID

import msgspec
import orjson

from durablefuture_trio.codec._text_forms import datetime_text, time_text, timedelta_text

# orjson's own rules would drop dataclass fields that start with an underscore, and the names of time zones.
_ORJSON_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

Simplify = Callable[[Any], Any]
"""Turns a value into plainer ones: JSON kinds, or values that are simplified in turn."""


class NotEncodable(TypeError):
    """No rule for values of this class. The text says what to do."""


def dump(value: Any) -> bytes:
    """The plain JSON of `value`.

    Raises:
        TypeError: it has no plain JSON (a subclass of it if the value cannot be encoded at all).
    """
    return orjson.dumps(value, default=simplify, option=_ORJSON_OPTIONS)


def simplify(value: Any) -> Any:
    """One step towards JSON, for a value orjson does not know."""
    return _simplifiers[type(value)](value)


def has_non_finite(value: Any) -> bool:
    """Whether a NaN or an infinity, which orjson writes as null, is anywhere inside an encodable value."""
    kind = value.__class__
    if kind is float:
        return not isfinite(value)
    if kind is str or kind is int or kind is bool or value is None:
        return False
    if isinstance(value, Enum):
        return has_non_finite(value.value)
    if isinstance(value, (str, int, UUID)):
        return False
    if isinstance(value, float):
        return not isfinite(value)
    if isinstance(value, dict):
        return any(map(has_non_finite, value.values()))
    if kind is tuple or isinstance(value, list):
        return any(map(has_non_finite, value))
    return has_non_finite(simplify(value))


def _simplify_set(value: Any) -> list[Any]:
    kinds = {item.__class__ for item in value}
    if kinds <= {str} or kinds <= {int}:
        return sorted(value)
    # The order of a set differs between processes, and sorted() is no total order for every kind of element.
    return sorted(value, key=dump)


def _fields_simplifier(cls: type, names: tuple[str, ...]) -> Simplify:
    name_set = frozenset(names)

    def simplify_fields(value: Any) -> dict[str, Any]:
        attributes = getattr(value, "__dict__", None)
        if attributes is not None and attributes.keys() == name_set:
            return attributes  # type: ignore[no-any-return]  # of any object it is a dict
        try:
            return {name: getattr(value, name) for name in names}
        except AttributeError as error:
            raise NotEncodable(f"a field of this {cls.__qualname__} has no value: {error}") from error

    return simplify_fields


def _make_simplifier(cls: type) -> Simplify:
    if issubclass(cls, tuple):
        return list
    if issubclass(cls, Enum):
        return lambda value: value.value
    if is_dataclass(cls):
        return _fields_simplifier(cls, tuple(field.name for field in fields(cls)))
    if issubclass(cls, msgspec.Struct):
        return _fields_simplifier(cls, cls.__struct_fields__)
    attrs_fields = getattr(cls, "__attrs_attrs__", None)
    if attrs_fields is not None:
        return _fields_simplifier(cls, tuple(field.name for field in attrs_fields))
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and issubclass(cls, pydantic.BaseModel):
        return lambda value: value.model_dump(mode="json", by_alias=True, round_trip=True)
    for base, rule in _RULES:
        if issubclass(cls, base):
            return rule
    raise NotEncodable(
        f"a value of type {cls.__module__}.{cls.__qualname__} cannot be encoded: use a dataclass, an attrs, msgspec or "
        "pydantic class, or one of the standard types that are listed in the documentation of payloads"
    )


_RULES: tuple[tuple[type | tuple[type, ...], Simplify], ...] = (
    (datetime, datetime_text),
    (date, date.isoformat),
    (time, time_text),
    (timedelta, timedelta_text),
    (Decimal, str),
    (UUID, str),
    ((bytes, bytearray, memoryview), lambda value: base64.b64encode(value).decode("ascii")),
    ((set, frozenset), _simplify_set),
    (deque, list),
    (PurePath, str),
    (str, str.__str__),
    (float, float.__float__),
    (int, int.__int__),
)


class _Simplifiers(dict[type, Simplify]):
    def __missing__(self, cls: type) -> Simplify:
        rule = _make_simplifier(cls)
        self[cls] = rule
        return rule


_simplifiers = _Simplifiers()
