"""Random values of random types come back as they were."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Generic, TypeVar
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from durablefuture_trio.codec import decode_arguments, decode_value, encode_arguments, encode_value

T = TypeVar("T")


@dataclass(frozen=True)
class Box(Generic[T]):
    value: T
    note: str = ""


Typed = tuple[Any, st.SearchStrategy[Any]]
"""A hint, and a strategy for its values."""

TEXT = st.text(st.characters(), max_size=8)

HASHABLE: list[Typed] = [
    (bool, st.booleans()),
    (int, st.integers()),
    (float, st.floats(allow_nan=False)),
    (str, TEXT),
    (bytes, st.binary(max_size=8)),
    (Decimal, st.decimals(allow_nan=False)),
    (UUID, st.uuids()),
    (datetime, st.datetimes()),
    (datetime, st.datetimes(timezones=st.timezones(), allow_imaginary=False)),
    (date, st.dates()),
    (time, st.times()),
    (timedelta, st.timedeltas()),
]

typed_scalars = st.sampled_from([*HASHABLE, (None, st.none())])


def _containers(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    hashable = st.sampled_from(HASHABLE)
    return st.one_of(
        inner.map(lambda t: (list[t[0]], st.lists(t[1], max_size=4))),  # type: ignore[name-defined]
        inner.map(lambda t: (tuple[t[0], ...], st.lists(t[1], max_size=4).map(tuple))),  # type: ignore[name-defined]
        st.tuples(inner, inner).map(lambda p: (tuple[p[0][0], p[1][0]], st.tuples(p[0][1], p[1][1]))),  # type: ignore[name-defined]
        hashable.map(lambda t: (set[t[0]], st.sets(t[1], max_size=4))),  # type: ignore[name-defined]
        st.tuples(hashable, inner).map(
            lambda p: (dict[p[0][0], p[1][0]], st.dictionaries(p[0][1], p[1][1], max_size=4))  # type: ignore[name-defined]
        ),
        inner.map(lambda t: (Box[t[0]], st.builds(Box, t[1], TEXT))),  # type: ignore[name-defined]
        inner.map(lambda t: (t[0] | None if t[0] is not None else None, st.none() | t[1])),
    )


typed = st.recursive(typed_scalars, _containers, max_leaves=6)
hints_and_values = typed.flatmap(lambda t: t[1].map(lambda value: (t[0], value)))


def _same(first: Any, second: Any) -> bool:
    if type(first) is not type(second):
        return False
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, Box):
        return _same(first.value, second.value) and first.note == second.note
    if isinstance(first, datetime):
        return first == second and first.utcoffset() == second.utcoffset() and first.tzinfo == second.tzinfo
    return bool(first == second)


@given(hints_and_values)
def test_any_value_comes_back_as_it_was(pair: tuple[Any, Any]) -> None:
    hint, value = pair
    rebuilt = decode_value(encode_value(value), hint)
    assert _same(rebuilt, value), (rebuilt, value)


@given(st.lists(hints_and_values, max_size=4))
def test_any_arguments_come_back_as_they_were(pairs: list[tuple[Any, Any]]) -> None:
    hints = [hint for hint, _ in pairs]
    values = tuple(value for _, value in pairs)
    assert _same(decode_arguments(encode_arguments(values), hints), values)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_values_without_a_hint_come_back_as_plain_json_does_even_where_json_cannot(value: Any) -> None:
    assert _same(decode_value(encode_value(value), Any), value)


@given(json_values)
def test_encoding_is_the_same_every_time(value: Any) -> None:
    assert encode_value(value) == encode_value(decode_value(encode_value(value), Any))
