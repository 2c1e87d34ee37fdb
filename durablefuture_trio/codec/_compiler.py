"""Hints to converters, cached."""

from __future__ import annotations

import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections import abc as collections_abc
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal, Union, get_args, get_origin
from uuid import UUID

from durablefuture_trio.codec._classes import class_converter
from durablefuture_trio.codec._containers import collection, fixed_tuple, mapping, untyped_tuple
from durablefuture_trio.codec._converter import (
    ALL_KINDS,
    BOOL,
    FLOAT,
    INT,
    NULL,
    TEXT,
    Convert,
    Converter,
    enumeration,
    finite_values,
    from_base64,
    text_form,
)
from durablefuture_trio.codec._hints import bare
from durablefuture_trio.codec._mismatch import HintError, Mismatch, expected
from durablefuture_trio.codec._text_forms import date_from, datetime_from, decimal_from, time_from, timedelta_from
from durablefuture_trio.codec._unions import optional, union

_LISTS: tuple[Any, ...] = (
    list,
    collections_abc.Sequence,
    collections_abc.MutableSequence,
    collections_abc.Collection,
    collections_abc.Iterable,
)
_SETS: tuple[Any, ...] = (set, collections_abc.Set, collections_abc.MutableSet)
_DICTS: tuple[Any, ...] = (dict, collections_abc.Mapping, collections_abc.MutableMapping)


def _of_class(cls: type, what: str) -> Convert:
    def convert(data: Any) -> Any:
        if data.__class__ is cls:
            return data
        raise expected(what, data)

    return convert


def _to_float(data: Any) -> Any:
    if data.__class__ is float:
        return data
    if data.__class__ is int:
        # An integer that no float equals stays what it is: lossless, and type checkers take an int for a float too.
        try:
            number = float(data)
        except OverflowError:
            return data
        return number if number == data else data
    raise expected("a number", data)


def _to_none(data: Any) -> None:
    if data is not None:
        raise expected("null", data)


def _scalar(cls: type, kind: str, what: str) -> Converter:
    return Converter(cls, _of_class(cls, what), frozenset({kind}), exact=cls, form=kind)


_ANYTHING = Converter(Any, None, ALL_KINDS, form="any")

_FIXED: dict[Any, Converter] = {
    Any: _ANYTHING,
    object: _ANYTHING,
    str: _scalar(str, TEXT, "text"),
    int: _scalar(int, INT, "an integer"),
    bool: _scalar(bool, BOOL, "a boolean"),
    float: Converter(float, _to_float, frozenset({FLOAT}), also=frozenset({INT}), exact=float, form=FLOAT),
    None: Converter(None, _to_none, frozenset({NULL}), exact=type(None), form=NULL),
    type(None): Converter(None, _to_none, frozenset({NULL}), exact=type(None), form=NULL),
    datetime: text_form(datetime, datetime_from, "datetime"),
    date: text_form(date, date_from, "date"),
    time: text_form(time, time_from, "time"),
    timedelta: text_form(timedelta, timedelta_from, "timedelta"),
    Decimal: text_form(Decimal, decimal_from, "decimal"),
    UUID: text_form(UUID, UUID, "uuid"),
    bytes: text_form(bytes, from_base64, "base64"),
    bytearray: text_form(bytearray, lambda text: bytearray(from_base64(text)), "base64"),
}


MAX_CACHED_HINTS = 10_000
"""Converters kept. Hints come from annotations, so only programs that make classes in a loop get there."""


class Compiler:
    """Compiles hints; what it has compiled is kept.

    Args:
        local_names: names that annotations may use besides those of their module (classes defined in a function).
    """

    def __init__(self, local_names: Mapping[str, Any] | None = None, cache: dict[Any, Converter] | None = None) -> None:
        self.local_names: Mapping[str, Any] = local_names or {}
        self._cache: dict[Any, Converter] = dict(_FIXED) if cache is None else cache

    def with_local_names(self, local_names: Mapping[str, Any]) -> Compiler:
        """A compiler that knows more names and shares what is compiled."""
        return Compiler(local_names, self._cache)

    def compile(self, hint: Any) -> Converter:
        """The converter of `hint`.

        Raises:
            HintError: values of it cannot be rebuilt.
        """
        try:
            found = self._cache.get(hint)
        except TypeError:
            # Annotated[...] with metadata that cannot be hashed.
            return self._compile(hint)
        if found is None:
            found = self._compile(hint)
            if len(self._cache) >= MAX_CACHED_HINTS:
                self._cache.clear()
                self._cache.update(_FIXED)
            self._cache[hint] = found
        return found

    def _compile(self, hint: Any) -> Converter:
        plain = bare(hint)
        if plain is not hint:
            return self.compile(plain)
        if isinstance(plain, str):
            raise HintError(f"the annotation {plain!r} is a string that was not resolved: write the type itself")
        origin = get_origin(plain)
        if origin is Literal:
            return finite_values(plain, get_args(plain))
        if origin is Union or origin is types.UnionType:
            return self._union(plain)
        cls = origin if origin is not None else plain
        if isinstance(cls, type):
            converter = self._class(plain, cls, get_args(plain))
            if converter is not None:
                return converter
        raise HintError(
            f"values of type {_shown(plain)} cannot be rebuilt from a payload: annotate with a dataclass, an attrs, "
            "msgspec or pydantic class, a standard container or scalar, or Any for plain JSON"
        )

    def _class(self, hint: Any, cls: type, arguments: tuple[Any, ...]) -> Converter | None:
        if cls is tuple:
            return self._tuple(hint, arguments)
        container = self._container(hint, cls, arguments)
        if container is not None:
            return container
        if issubclass(cls, Enum):
            return enumeration(cls)
        with_fields = class_converter(self, cls, arguments, hint)
        if with_fields is not None:
            return with_fields
        for base in (str, int, float, PurePath):
            if issubclass(cls, base) and cls is not bool:
                return self._subclass(cls, base)
        return None

    def _container(self, hint: Any, cls: type, arguments: tuple[Any, ...]) -> Converter | None:
        make: Callable[[Any], Any] | None = None
        if cls in _LISTS:
            make = list
        elif cls in _SETS:
            make = set
        elif cls is frozenset or cls is deque:
            make = cls
        if make is not None:
            return collection(hint, make, self.compile(arguments[0] if arguments else Any))
        if cls in _DICTS:
            cls = dict
        elif cls not in (OrderedDict, Counter, defaultdict):
            return None
        key, item = (Any, Any) if not arguments else (arguments[0], int if cls is Counter else arguments[1])
        return mapping(hint, cls, self.compile(key), self.compile(item))

    def _tuple(self, hint: Any, arguments: tuple[Any, ...]) -> Converter:
        if not arguments and hint is tuple:
            return collection(hint, tuple, _ANYTHING)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return collection(hint, tuple, self.compile(arguments[0]))
        return fixed_tuple(hint, untyped_tuple, tuple(map(self.compile, arguments)), len(arguments))

    def _union(self, hint: Any) -> Converter:
        members = [self.compile(argument) for argument in get_args(hint)]
        if any(member.convert is None for member in members):
            return _ANYTHING
        others = [member for member in members if member.exact is not type(None)]
        if not others:
            return _FIXED[None]
        inner = others[0] if len(others) == 1 else union(hint, others)
        return optional(hint, inner) if len(others) < len(members) else inner

    def _subclass(self, cls: type, base: type) -> Converter:
        inner = self.compile(base if base is not PurePath else str)

        def convert(data: Any) -> Any:
            try:
                return cls(inner.apply(data))
            except (ValueError, TypeError) as error:
                raise Mismatch(f"{cls.__qualname__} could not be built: {error}") from error

        return Converter(cls, convert, inner.kinds, also=inner.also, form=cls.__qualname__)


def _shown(hint: Any) -> str:
    return f"{hint.__module__}.{hint.__qualname__}" if isinstance(hint, type) else str(hint)
