# ruff: noqa: DTZ001, DTZ901 - naive datetimes are values like others
from __future__ import annotations

import collections
import enum
import logging
import typing
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import PurePosixPath
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest

from durablefuture_trio.codec import _compiler, decode_arguments, decode_value, encode_arguments, encode_value, values
from durablefuture_trio.codec.payload import MAX_PAYLOAD_BYTES, WARN_PAYLOAD_BYTES, Payload
from durablefuture_trio.errors import PayloadError

T = TypeVar("T")
K = TypeVar("K")


class Color(enum.Enum):
    RED = "red"
    DEEP = ("a", 1)
    SINCE = date(2020, 1, 1)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Name(enum.StrEnum):
    A = "a"


class Rights(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


@dataclass
class Item:
    sku: str
    count: int = 1
    when: datetime | None = None
    _hidden: int = 7


@dataclass(frozen=True)
class Point:
    x: int
    y: int


@dataclass(slots=True, kw_only=True)
class Order:
    id: UUID
    items: list[Item]
    price: Decimal
    parent: Order | None = None
    tags: set[str] = field(default_factory=set)
    total: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.total = len(self.items)


@dataclass
class Box(Generic[T]):
    value: T


@dataclass
class Pair(Box[T], Generic[T, K]):
    other: K


@dataclass
class IntBox(Box[int]):
    more: str = ""


@attrs.define
class Parcel:
    weight: float
    _secret: bytes = b""
    labels: dict[str, Point] = attrs.field(factory=dict)


class Struct(msgspec.Struct):
    name: str
    inner: Point | None = None


class Settings(TypedDict):
    name: str
    when: NotRequired[datetime]


class Range(NamedTuple):
    start: date
    end: date | None = None


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    name: str = pydantic.Field(alias="Name")
    when: datetime
    sizes: list[Decimal] = []


class Text(str):
    __slots__ = ()


class Cents(int):
    pass


UserId = NewType("UserId", int)

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (None, None),
        (True, bool),
        (0, int),
        (-(2**63), int),
        (2**64 - 1, int),
        (2**64, int),
        (-(2**63) - 1, int),
        (1.5, float),
        (-0.0, float),
        (5e-324, float),
        (float("inf"), float),
        (float("-inf"), float),
        (2**53 + 1, float),
        ("", str),
        ("snow ☃ \U0001f600 \x00", str),
        ("\ud800 alone", str),
        (b"\x00\xff", bytes),
        (bytearray(b"abc"), bytearray),
        (Decimal("1.10"), Decimal),
        (Decimal("-Infinity"), Decimal),
        (UUID(int=5), UUID),
        (datetime(2026, 3, 1, 9, 30, 0, 123456), datetime),
        (datetime(2026, 3, 1, 9, 30, tzinfo=UTC), datetime),
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=-5, minutes=-30))), datetime),
        (datetime(2026, 3, 1, 9, 30, tzinfo=timezone(timedelta(seconds=1234))), datetime),
        (datetime.max, datetime),
        (datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN), datetime),
        (datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN), datetime),
        (date(2026, 3, 1), date),
        (time(9, 30, 0, 5), time),
        (time(9, 30, tzinfo=UTC), time),
        (time(9, 30, tzinfo=BERLIN), time),
        (timedelta(0), timedelta),
        (timedelta(microseconds=-1), timedelta),
        (timedelta.min, timedelta),
        (timedelta.max, timedelta),
        (Color.RED, Color),
        (Color.DEEP, Color),
        (Color.SINCE, Color),
        (Level.HIGH, Level),
        (Name.A, Name),
        (Rights.READ | Rights.WRITE, Rights),
        (PurePosixPath("/a/b"), PurePosixPath),
        (Text("x"), Text),
        (Cents(5), Cents),
        (UserId(5), UserId),
        ([1, 2], list[int]),
        ([[1], []], list[list[int]]),
        ((1, "a"), tuple[int, str]),
        ((), tuple[()]),
        ((1, 2, 3), tuple[int, ...]),
        ((1, "a"), tuple),
        ({3, 1, 2}, set[int]),
        ({"b", "a"}, set[str]),
        (frozenset({Point(1, 2), Point(0, 0)}), frozenset[Point]),
        ({float("inf"), 2.0}, set[float]),
        (collections.deque([1, 2]), collections.deque[int]),
        ([1, 2], Sequence[int]),
        ({"a": 1}, dict[str, int]),
        ({"a": date(2020, 1, 1)}, Mapping[str, date]),
        ({1: "a", -2: "b"}, dict[int, str]),
        ({True: 1, False: 0}, dict[bool, int]),
        ({None: 1, "None": 2}, dict[str | None, int]),
        ({(1, 2): "a"}, dict[tuple[int, int], str]),
        ({Point(1, 2): "a"}, dict[Point, str]),
        ({UUID(int=1): 1}, dict[UUID, int]),
        ({date(2020, 1, 1): 1}, dict[date, int]),
        ({Color.RED: 1}, dict[Color, int]),
        ({Name.A: 1}, dict[Name, int]),
        ({2**70: 1}, dict[int, int]),
        ({"\ud800": 1}, dict[str, int]),
        ({"$float": "inf"}, dict[str, str]),
        ({"$float": float("inf"), "$$x": 1.0}, dict[str, float]),
        (collections.OrderedDict(b=1, a=2), collections.OrderedDict[str, int]),
        (collections.Counter("abca"), collections.Counter[str]),
        (collections.defaultdict(list, a=[1]), collections.defaultdict[str, list[int]]),
        (Item("a"), Item),
        (Item("a", 2, datetime(2020, 1, 1), _hidden=9), Item),
        (
            Order(id=UUID(int=1), items=[Item("a")], price=Decimal(1), parent=None, tags={"x"}),
            Order,
        ),
        (Box(5), Box[int]),
        (Box(Point(1, 2)), Box[Point]),
        (Pair(date(2020, 1, 1), UUID(int=1)), Pair[date, UUID]),
        (IntBox(3, "x"), IntBox),
        (Box(Box([Point(1, 2)])), Box[Box[list[Point]]]),
        (Parcel(1.0, b"s", {"a": Point(1, 2)}), Parcel),
        (Struct("a", Point(1, 2)), Struct),
        ({"name": "a"}, Settings),
        ({"name": "a", "when": datetime(2020, 1, 1)}, Settings),
        (Range(date(2020, 1, 1)), Range),
        (Model(Name="a", when=datetime(2020, 1, 1, tzinfo=UTC), sizes=[Decimal("1.5")]), Model),
        (None, Optional[int]),  # noqa: UP045 - the old spelling has to work too
        (5, Union[int, str]),  # noqa: UP007 - the old spelling has to work too
        ("5", int | str),
        (5, int | float),
        (5.0, int | float),
        (Item("a"), Item | Point),
        (Point(1, 2), Item | Point | None),
        (date(2020, 1, 1), datetime | date),
        (datetime(2020, 1, 1), datetime | date),
        (UUID(int=7), UUID | datetime | int),
        ([Item("a"), Point(1, 2)], list[Item | Point]),
        ([1], list[int] | list[str]),
        ("fast", Literal["fast", "slow"]),
        (Level.LOW, Literal[Level.LOW]),
        (1, Annotated[int, ["not hashable"]]),
        (1, Final[int]),
        ({"a": [1, None, {"b": 2.5}]}, Any),
        ({"a": 1}, object),
        (float("inf"), Any),
        ({1: 2}, Any),
        (2**100, Any),
        ([1, [2, 3]], list),
    ],
    ids=repr,
)
def test_a_value_comes_back_equal_and_of_the_same_class(value: Any, hint: Any) -> None:
    rebuilt = decode_value(encode_value(value), hint)
    assert rebuilt == value
    assert type(rebuilt) is type(value)
    [argument] = decode_arguments(encode_arguments((value,)), [hint])
    assert argument == value
    assert type(argument) is type(value)


def test_an_integer_of_any_length_comes_back() -> None:
    value = 1 << 20_000
    assert decode_value(encode_value(value), int) == value


def test_nan_comes_back_as_nan() -> None:
    rebuilt = decode_value(encode_value([1.0, float("nan")]), list[float])
    assert rebuilt[1] != rebuilt[1]


def test_both_wall_clock_times_at_the_end_of_summer_time_keep_their_offset_and_zone() -> None:
    for fold in (0, 1):
        moment = datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=BERLIN)
        rebuilt = decode_value(encode_value(moment), datetime)
        assert rebuilt.utcoffset() == moment.utcoffset()
        assert rebuilt.tzinfo is BERLIN


def test_common_values_are_plain_json_that_people_can_read() -> None:
    assert encode_arguments(("Bob", 10.5, None)).data == b'["Bob",10.5,null]'
    assert encode_value(Item("a", when=datetime(2020, 1, 1, tzinfo=UTC))).data == (
        b'{"sku":"a","count":1,"when":"2020-01-01T00:00:00+00:00","_hidden":7}'
    )
    assert encode_value({"n": timedelta(days=1, seconds=2.5), "d": Decimal("1.10")}).data == (
        b'{"n":"P1DT2.5S","d":"1.10"}'
    )


def test_an_object_of_tags_in_plain_json_stays_the_dict_it_was() -> None:
    payload = encode_value({"$float": "inf"})
    assert payload.encoding == "json"
    assert decode_value(payload, Any) == {"$float": "inf"}


def test_sets_are_encoded_in_an_order_that_does_not_depend_on_the_process() -> None:
    assert encode_value({"b", "c", "a"}).data == b'["a","b","c"]'
    assert encode_value({Point(2, 1), Point(1, 9)}).data == b'[{"x":1,"y":9},{"x":2,"y":1}]'
    assert encode_value({frozenset({2, 1}), frozenset({3})}).data == b"[[1,2],[3]]"


def test_fields_that_are_not_arguments_of_the_constructor_come_back_too() -> None:
    order = Order(id=UUID(int=1), items=[], price=Decimal(1))
    order.total = 99
    assert decode_value(encode_value(order), Order).total == 99


def test_a_class_gets_its_defaults_for_fields_that_an_older_payload_lacks() -> None:
    assert decode_value(Payload(b'{"sku":"a"}'), Item) == Item("a")


def test_fields_the_class_no_longer_has_are_ignored() -> None:
    assert decode_value(Payload(b'{"x":1,"y":2,"z":3}'), Point) == Point(1, 2)


def test_an_integer_is_taken_for_a_float_because_json_from_elsewhere_writes_it_so() -> None:
    rebuilt = decode_value(Payload(b"10"), float)
    assert rebuilt == 10.0
    assert type(rebuilt) is float


def test_keys_of_plain_json_from_elsewhere_are_read_as_the_hint_says() -> None:
    assert decode_value(Payload(b'{"1":"a"}'), dict[int, str]) == {1: "a"}
    assert decode_value(Payload(b'{"true":1}'), dict[bool, int]) == {True: 1}


def test_trailing_arguments_may_be_missing_and_too_many_are_refused() -> None:
    assert decode_arguments(Payload(b"[1]"), [int, str]) == (1,)
    with pytest.raises(PayloadError, match="at most 1 arguments, found 2"):
        decode_arguments(Payload(b"[1,2]"), [int])
    with pytest.raises(PayloadError, match="expected an array of arguments"):
        decode_arguments(Payload(b"{}"), [int])


@pytest.mark.parametrize(
    ("data", "hint", "path"),
    [
        (b'"x"', int, "$"),
        (b"true", int, "$"),
        (b"1.5", int, "$"),
        (b"1", str, "$"),
        (b"null", str, "$"),
        (b"5", None, "$"),
        (b'[1,"x"]', list[int], "$[1]"),
        (b'{"a":{"b":[1,null]}}', dict[str, dict[str, list[int]]], "$.a.b[1]"),
        (b'{"a b":"x"}', dict[str, int], "$['a b']"),
        (b'{"x":1,"y":"2"}', Point, "$.y"),
        (b'{"x":1}', Point, "$"),
        (b"[1]", tuple[int, str], "$"),
        (b'[1,["x"]]', tuple[int, list[int]], "$[1][0]"),
        (b'{"start":"2020-01-01"}', Range, "$"),
        (b'["2020-01-01","later"]', Range, "$[1]"),
        (b'{"sku":"a","when":"yesterday"}', Item, "$.when"),
        (b'"2020-01-01T00:00:00[Nowhere/Land]"', datetime, "$"),
        (b'"blue"', Color, "$"),
        (b'"medium"', Literal["fast", "slow"], "$"),
        (b"true", Literal[1], "$"),
        (b'"not base64!"', bytes, "$"),
        (b'"1,5"', Decimal, "$"),
        (b'"P"', timedelta, "$"),
        (b"[[1]]", set[list[int]], "$"),
        (b'{"q":1}', Item | Point, "$"),
        (b'{"name":1}', Settings, "$.name"),
        (b"{}", Settings, "$"),
        (b'{"Name":"a","when":"x"}', Model, "$"),
        (b"{", int, "$"),
    ],
    ids=repr,
)
def test_data_that_is_not_what_the_hint_wants_is_refused_with_its_place(data: bytes, hint: Any, path: str) -> None:
    with pytest.raises(PayloadError) as caught:
        decode_value(Payload(data), hint)
    assert caught.value.path == path


def test_the_place_in_the_arguments_is_part_of_the_message() -> None:
    payload = Payload(b'[{"id":"00000000-0000-0000-0000-000000000001","items":[{"sku":"a"},{"sku":1}],"price":"1"}]')
    with pytest.raises(PayloadError, match=r"\$\[0\]\.items\[1\]\.sku: expected text, found an integer 1"):
        decode_arguments(payload, [Order])


def test_an_error_of_the_class_itself_is_told_with_the_place() -> None:
    @dataclass
    class Even:
        number: int

        def __post_init__(self) -> None:
            if self.number % 2:
                raise ValueError("odd")

    with pytest.raises(PayloadError, match=r"\$\[1\]: .*Even could not be built: ValueError\('odd'\)"):
        decode_value(Payload(b'[{"number":2},{"number":3}]'), list[Even])


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "$"),
        ([1, object()], "$[1]"),
        ({"a": [1, {"b": object()}]}, "$.a[1].b"),
        (Item("a", when=object()), "$.when"),  # type: ignore[arg-type]
        ((Point(1, 2), {"k k": 1j}), "$[1]['k k']"),
        ({object(): 1}, "$.keys()"),
        (len, "$"),
        (Point, "$"),
    ],
)
def test_a_value_that_cannot_be_encoded_is_refused_with_its_place(value: Any, path: str) -> None:
    with pytest.raises(PayloadError, match="cannot be encoded") as caught:
        encode_value(value)
    assert caught.value.path == path


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(PayloadError, match="contains itself"):
        encode_value(loop)


def test_an_unset_field_is_refused_with_its_place() -> None:
    item = Item("a")
    del item.count
    item.__class__ = type("Bare", (Item,), {"count": property(lambda self: 1 / 0)})
    with pytest.raises(PayloadError, match=r"\$\[0\].*division by zero"):
        encode_arguments((item,))


def test_a_payload_over_the_limit_is_refused_with_size_and_limit() -> None:
    with pytest.raises(PayloadError, match="102 bytes; the limit of a payload is 100 bytes") as caught:
        encode_value("x" * 100, limit=100)
    assert vars(caught.value)["size_bytes"] == 102
    assert vars(caught.value)["limit_bytes"] == 100
    assert encode_value("x" * 98, limit=100).size_bytes == 100
    with pytest.raises(PayloadError, match=str(MAX_PAYLOAD_BYTES)):
        encode_arguments(("x" * MAX_PAYLOAD_BYTES,))


def test_a_large_payload_is_logged_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "durablefuture_trio.codec"):
        encode_value("x" * (WARN_PAYLOAD_BYTES - 2))
        assert not caplog.records
        encode_value("x" * (WARN_PAYLOAD_BYTES - 1))
    assert str(WARN_PAYLOAD_BYTES + 1) in caplog.text


def test_a_payload_of_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(PayloadError, match="encoded as 'pickle'"):
        decode_value(Payload(b"", "pickle"), Any)
    with pytest.raises(PayloadError, match=r"unknown tag '\$new'"):
        decode_value(Payload(b'{"$new":1}', "json+tags"), Any)


@pytest.mark.parametrize("hint", [complex, typing.Callable[[], int], type[int], collections.abc.Iterator[int]], ids=str)
def test_a_hint_no_value_can_be_rebuilt_from_is_refused(hint: Any) -> None:
    with pytest.raises(PayloadError, match="cannot be rebuilt"):
        decode_value(Payload(b"1"), hint)


def test_init_only_variables_without_default_are_told_as_what_is_missing() -> None:
    @dataclass
    class Odd:
        number: int
        seed: InitVar[int]

    with pytest.raises(PayloadError, match="seed"):
        decode_value(encode_value(Odd(1, 2)), Odd)


def test_classes_defined_in_a_function_that_refer_to_themselves_are_rebuilt() -> None:
    @dataclass
    class Node:
        name: str
        children: list[Node]

    tree = Node("a", [Node("b", [])])
    assert decode_value(encode_value(tree), Node) == tree


def test_the_caches_of_converters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compiler, "MAX_CACHED_HINTS", 60)
    monkeypatch.setattr(values, "MAX_CACHED_HINTS", 60)
    for _ in range(200):
        local = dataclass(type("Local", (), {"__annotations__": {"number": "int", "next": "Local | None"}}))
        value = local(1, local(2, None))
        assert decode_arguments(encode_arguments((value,)), [local]) == (value,)
    assert len(values._compiler._cache) <= 60
    assert len(values._argument_converters) <= 60
