from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

import pytest

from durablefuture_trio.codec import decode_value, encode_value
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.errors import PayloadError


class Level(enum.IntEnum):
    LOW = 1


class Name(enum.StrEnum):
    A = "a"


@dataclass
class Point:
    x: int
    y: int


@dataclass
class Circle:
    radius: float


@dataclass
class Sphere:
    radius: float


@dataclass
class Cat:
    kind: Literal["cat"]
    name: str


@dataclass
class Dog:
    kind: Literal["dog"]
    name: str


@pytest.mark.parametrize(
    "hint",
    [
        Circle | Sphere,
        str | datetime,
        str | Name,
        int | Level,
        bytes | str,
        bytes | Decimal,
        list[int] | tuple[int, ...],
        list[int] | set[int],
        dict[str, int] | Point,
    ],
    ids=str,
)
def test_a_union_whose_members_look_alike_is_refused_instead_of_guessed(hint: Any) -> None:
    with pytest.raises(PayloadError, match="look alike in a payload"):
        decode_value(Payload(b"1"), hint)


def test_literal_fields_tell_classes_of_a_union_apart() -> None:
    for animal in (Cat("cat", "x"), Dog("dog", "x")):
        assert decode_value(encode_value(animal), Cat | Dog) == animal


@dataclass
class Old:
    name: str


@dataclass
class New:
    name: str
    note: str = ""


def test_the_class_whose_fields_are_exactly_those_of_the_payload_is_taken() -> None:
    for value in (Old("a"), New("a"), New("a", "b")):
        rebuilt = decode_value(encode_value(value), Old | New)
        assert type(rebuilt) is type(value)
        assert rebuilt == value


def test_a_payload_that_fits_no_member_says_why_for_each() -> None:
    with pytest.raises(PayloadError) as caught:
        decode_value(Payload(b'{"kind":"cow","name":"x"}'), Cat | Dog)
    assert 'as Cat: expected one of "cat"' in str(caught.value)
    assert 'as Dog: expected one of "dog"' in str(caught.value)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("auto", Literal["auto"] | int),
        (5, Literal["auto"] | int),
        ("auto", Literal["auto"] | str),
        ("other", Literal["auto"] | str),
        (Name.A, Name | Literal["b"]),
        ("b", Name | Literal["b"]),
        (Name.A, Name | datetime),
        (Level.LOW, Level | str | None),
        (b"\xff", bytes | int),
        ([1], list[int] | dict[str, int]),
        ({"a": [None, 1.5, "x"]}, dict[str, list[float | str | None]]),
    ],
    ids=repr,
)
def test_members_that_can_be_told_apart_come_back_as_themselves(value: Any, hint: Any) -> None:
    rebuilt = decode_value(encode_value(value), hint)
    assert rebuilt == value
    assert type(rebuilt) is type(value)
