"""From JSON kinds back to Python values: one converter for each hint, compiled once.

`Compiler.compile` turns a hint into a `Converter`. What a converter knows besides its function (which JSON kinds it
takes, which form its text has, which fields its class has) lets unions be checked when they are compiled: members that
could not be told apart are refused then, not guessed at later.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, TypeAlias

import orjson

from durablefuture_trio.codec._encode import dump
from durablefuture_trio.codec._mismatch import HintError, Mismatch, expected

Convert: TypeAlias = Callable[[Any], Any]

NULL, BOOL, INT, FLOAT, TEXT, ARRAY, OBJECT = "null", "bool", "int", "float", "text", "array", "object"
ALL_KINDS = frozenset({NULL, BOOL, INT, FLOAT, TEXT, ARRAY, OBJECT})

KIND_OF: dict[type, str] = {
    type(None): NULL,
    bool: BOOL,
    int: INT,
    float: FLOAT,
    str: TEXT,
    list: ARRAY,
    dict: OBJECT,
}


class Converter:
    """How values of one hint are rebuilt.

    Attributes:
        hint: what it was compiled from, for messages.
        convert: the function; raises `Mismatch`. None: every value is taken as it is.
        kinds: the JSON kinds that values of this hint are encoded as.
        also: kinds that are accepted besides (an integer for a float).
        exact: the class of which every instance is taken as it is; None if there is no such class.
        form: which values of its kind: ``"text"``, ``"datetime"``, ``"values"``, the container's name for arrays …
        values: for a finite set of values, these, as JSON.
        fields: for a class with fields, a function that gives their names (all, and the required ones) and hints.
        prepare: compiles what is compiled late, because classes may refer to themselves.
    """

    __slots__ = ("also", "convert", "exact", "fields", "form", "hint", "kinds", "prepare", "values")

    def __init__(
        self,
        hint: Any,
        convert: Convert | None,
        kinds: frozenset[str],
        *,
        also: frozenset[str] = frozenset(),
        exact: type | None = None,
        form: str = "",
        values: frozenset[Any] = frozenset(),
        fields: FieldTable | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.hint = hint
        self.convert = convert
        self.kinds = kinds
        self.also = also
        self.exact = exact
        self.form = form
        self.values = values
        self.fields = fields
        self.prepare = prepare

    def apply(self, data: Any) -> Any:
        """Rebuild one value."""
        return data if self.convert is None else self.convert(data)


class FieldTable:
    """The fields of a class with fields: what is needed to tell it from another one.

    Attributes:
        names: the JSON names of all fields.
        required: those that have no default.
        hints: their annotations.
    """

    __slots__ = ("hints", "names", "required")

    def __init__(self, names: frozenset[str], required: frozenset[str], hints: Mapping[str, Any]) -> None:
        self.names = names
        self.required = required
        self.hints = hints


def text_form(hint: Any, parse: Callable[[str], Any], form: str) -> Converter:
    """A class whose values travel as text of a certain form; `parse` raises ValueError for any other text."""

    def convert(data: Any) -> Any:
        if data.__class__ is not str:
            raise expected(f"{form} as text", data)
        try:
            return parse(data)
        except (ValueError, KeyError, OSError) as error:
            # KeyError and OSError: a time zone this machine does not know.
            raise Mismatch(f"{expected(form, data).problem}: {error}") from error

    return Converter(hint, convert, frozenset({TEXT}), form=form)


def from_base64(text: str) -> bytes:
    """Bytes from their base64 text; ValueError if it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error


def finite_values(hint: Any, members: Iterable[Any]) -> Converter:
    """A hint with a finite set of values: a Literal, an Enum."""
    by_json: dict[bytes, Any] = {}
    for member in members:
        by_json.setdefault(_json_key(member), member)
    kinds = frozenset(KIND_OF[type(orjson.loads(key))] for key in by_json)
    scalars = {
        (type(value), value): member
        for value, member in ((orjson.loads(key), member) for key, member in by_json.items())
        if not isinstance(value, (list, dict))
    }
    only_scalars = len(scalars) == len(by_json)

    def convert(data: Any) -> Any:
        try:
            return scalars[data.__class__, data]
        except (KeyError, TypeError):
            pass
        if not only_scalars:
            try:
                return by_json[orjson.dumps(data)]
            except (KeyError, TypeError):
                pass
        allowed = ", ".join(key.decode() for key in list(by_json)[:10])
        raise expected(f"one of {allowed}{' …' if len(by_json) > 10 else ''}", data)

    return Converter(hint, convert, kinds, form="values", values=frozenset(by_json))


def _json_key(member: Any) -> bytes:
    try:
        return dump(member)
    except TypeError as error:
        raise HintError(f"{member!r} cannot be encoded: {error}") from error


def enumeration(cls: type[Enum]) -> Converter:
    """An Enum, by its members' values; flags by any combination."""
    by_value = finite_values(cls, cls.__members__.values())
    lookup = by_value.convert
    assert lookup is not None

    def convert(data: Any) -> Any:
        try:
            return lookup(data)
        except Mismatch:
            if data.__class__ in (int, str):
                # Combined flags, and whatever the class's own _missing_ allows.
                try:
                    return cls(data)
                except ValueError:
                    pass
            raise

    return Converter(cls, convert, by_value.kinds, form="values", values=by_value.values)
