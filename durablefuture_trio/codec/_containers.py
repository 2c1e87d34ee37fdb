"""Converters of arrays and objects: lists, tuples, sets, dicts."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from durablefuture_trio.codec._converter import ARRAY, OBJECT, Convert, Converter
from durablefuture_trio.codec._mismatch import Mismatch, expected
from durablefuture_trio.codec._tagged import Pairs

# The keys of a JSON object are text: what plain JSON from elsewhere (a command line) may mean by one.
_KEY_TEXTS: dict[str, Any] = {"true": True, "false": False, "null": None}


def _elements(data: Any, what: str) -> Any:
    # Keys of a dict are frozen to tuples before they are rebuilt.
    if data.__class__ is list or data.__class__ is tuple:
        return data
    raise expected(what, data)


def each(convert: Convert, data: Iterable[Any]) -> list[Any]:
    """Every element converted; a mismatch says which one it was."""
    try:
        return [convert(element) for element in data]
    except Mismatch:
        for index, element in enumerate(data):
            try:
                convert(element)
            except Mismatch as mismatch:
                raise mismatch.at(f"[{index}]") from None
        raise


def collection(hint: Any, make: Callable[[Any], Any], element: Converter) -> Converter:
    """A list, set, deque or tuple of any length. `make` gets a list."""
    form = getattr(make, "__name__", "list")
    inner = element.convert
    keep_list = make is list

    def convert(data: Any) -> Any:
        if data.__class__ is not list:
            data = list(_elements(data, "an array"))
        if inner is not None:
            data = each(inner, data)
        if keep_list:
            return data
        try:
            return make(data)
        except TypeError as error:
            raise Mismatch(f"the elements do not go into a {form}: {error}") from error

    return Converter(hint, convert, frozenset({ARRAY}), form=form, prepare=element.prepare)


def fixed_tuple(
    hint: Any, make: Callable[[list[Any]], Any], elements: tuple[Converter, ...], required: int
) -> Converter:
    """A tuple with one hint for each position (or a named one); elements past `required` may be missing."""
    applies = [element.apply for element in elements]
    length = len(elements)
    sizes = f"{length}" if required == length else f"{required} to {length}"

    def convert(data: Any) -> Any:
        values = _elements(data, f"an array of {sizes}")
        if not required <= len(values) <= length:
            raise Mismatch(f"expected {sizes} elements, found {len(values)}")
        rebuilt = []
        for index, value in enumerate(values):
            try:
                rebuilt.append(applies[index](value))
            except Mismatch as mismatch:
                raise mismatch.at(f"[{index}]") from None
        return make(rebuilt)

    def prepare() -> None:
        for element in elements:
            if element.prepare is not None:
                element.prepare()

    return Converter(
        hint, convert, frozenset({ARRAY}), form=f"{getattr(make, '__qualname__', 'tuple')}", prepare=prepare
    )


def _dict_factory(cls: type, item: Converter) -> Callable[[dict[Any, Any]], Any]:
    if issubclass(cls, defaultdict):
        factory = item.hint if item.hint in (int, float, str, list, dict, set) else None
        return lambda rebuilt: cls(factory, rebuilt)
    if cls in (OrderedDict, Counter) or cls is not dict:
        return cls
    return lambda rebuilt: rebuilt


def mapping(hint: Any, cls: type, key: Converter, item: Converter) -> Converter:
    """A dict (or a class of dicts) of one key and one value type."""
    make = _dict_factory(cls, item)
    convert_item = item.apply
    text_keys = key.convert is None or key.exact is str

    def convert(data: Any) -> Any:
        pairs: Iterable[Any]
        if data.__class__ is dict:
            pairs = data.items()
        elif data.__class__ is Pairs:
            pairs = data
        else:
            raise expected("an object", data)
        rebuilt: dict[Any, Any] = {}
        for name, value in pairs:
            try:
                rebuilt_key = name if text_keys and name.__class__ is str else _key(key, name)
            except Mismatch as mismatch:
                raise mismatch.at(f".keys()[{name!r:.60}]") from None
            try:
                rebuilt[rebuilt_key] = convert_item(value)
            except Mismatch as mismatch:
                step = f".{name}" if name.__class__ is str and name.isidentifier() else f"[{name!r:.60}]"
                raise mismatch.at(step) from None
        return make(rebuilt)

    def prepare() -> None:
        for part in (key, item):
            if part.prepare is not None:
                part.prepare()

    return Converter(hint, convert, frozenset({OBJECT}), form=cls.__name__, prepare=prepare)


def _key(key: Converter, name: Any) -> Any:
    try:
        return key.apply(name)
    except Mismatch as mismatch:
        if name.__class__ is not str:
            raise
        for read in (int, float, _KEY_TEXTS.__getitem__):
            try:
                return key.apply(read(name))
            except (ValueError, KeyError, Mismatch):
                continue
        raise mismatch from None


def untyped_tuple(data: list[Any]) -> tuple[Any, ...]:
    """A tuple out of the elements."""
    return tuple(data)
