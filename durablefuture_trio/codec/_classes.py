"""Converters of classes with fields: dataclasses, attrs, msgspec structs, TypedDicts, NamedTuples, pydantic models."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, Protocol, Required, get_origin, is_typeddict

import msgspec
import orjson

from durablefuture_trio.codec._containers import fixed_tuple
from durablefuture_trio.codec._converter import OBJECT, Converter, FieldTable
from durablefuture_trio.codec._hints import class_hints
from durablefuture_trio.codec._mismatch import HintError, Mismatch, expected


class Compiles(Protocol):
    """The compiler, as the classes here need it."""

    @property
    def local_names(self) -> Mapping[str, Any]: ...

    def compile(self, hint: Any) -> Converter: ...


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """One field: its JSON key, the constructor's name for it (None: set afterwards), whether it may be missing."""

    key: str
    argument: str | None
    required: bool


def class_converter(compiler: Compiles, cls: type, arguments: tuple[Any, ...], hint: Any) -> Converter | None:
    """The converter of a class with fields; None if it is no such class."""
    if is_typeddict(cls):
        return _typed_dict(compiler, cls, arguments, hint)
    if issubclass(cls, tuple):
        return _named_tuple(compiler, cls, arguments, hint) if hasattr(cls, "_fields") else None
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and issubclass(cls, pydantic.BaseModel):
        return _pydantic_model(hint if get_origin(hint) is None else cls[arguments], hint)  # type: ignore[index]  # generic
    fields = _fields_of(cls)
    if fields is None:
        return None
    return _fields_class(compiler, cls, arguments, hint, fields)


def _fields_of(cls: type) -> list[_Field] | None:
    if dataclasses.is_dataclass(cls):
        missing = dataclasses.MISSING
        return [
            _Field(f.name, f.name if f.init else None, f.init and f.default is missing and f.default_factory is missing)
            for f in dataclasses.fields(cls)
        ]
    if issubclass(cls, msgspec.Struct):
        return [_Field(f.name, f.name, f.required) for f in msgspec.structs.fields(cls)]
    attrs_fields = getattr(cls, "__attrs_attrs__", None)
    if attrs_fields is not None:
        attrs = sys.modules["attr"]
        return [
            _Field(f.name, f.alias if f.init else None, f.init and f.default is attrs.NOTHING) for f in attrs_fields
        ]
    return None


def _fields_class(
    compiler: Compiles, cls: type, arguments: tuple[Any, ...], hint: Any, fields: list[_Field]
) -> Converter:
    local_names = dict(compiler.local_names)
    hints = _LazyHints(lambda: class_hints(cls, arguments, local_names))
    table = FieldTable(
        frozenset(field.key for field in fields), frozenset(field.key for field in fields if field.required), hints
    )
    plan: list[tuple[str, str, bool, type | None, Callable[[Any], Any]]] = []
    late: list[tuple[str, Callable[[Any], Any]]] = []

    def build() -> None:
        resolved = hints.resolved()
        for field in fields:
            try:
                converter = compiler.compile(resolved.get(field.key, Any))
            except HintError as error:
                raise HintError(f"field {field.key} of {cls.__qualname__}: {error}") from error
            if field.argument is None:
                late.append((field.key, converter.apply))
            else:
                exact = converter.exact
                apply = converter.convert or _as_it_is
                plan.append((field.key, field.argument, field.required, exact, apply))
            converters.append(converter)

    converters: list[Converter] = []
    started = False

    def prepare() -> None:
        nonlocal started
        if started:
            return
        started = True
        try:
            build()
            for converter in converters:
                if converter.prepare is not None:
                    converter.prepare()
        except BaseException:
            started = False
            for built in (plan, late, converters):
                built.clear()
            raise

    def convert(data: Any) -> Any:
        if not started:
            prepare()
        if data.__class__ is not dict:
            raise expected(f"an object for {cls.__qualname__}", data)
        keywords = {}
        for key, argument, required, exact, apply in plan:
            try:
                value = data[key]
            except KeyError:
                if required:
                    raise Mismatch(f"field {key} of {cls.__qualname__} is missing") from None
                continue
            if value.__class__ is exact:
                keywords[argument] = value
                continue
            try:
                keywords[argument] = apply(value)
            except Mismatch as mismatch:
                raise mismatch.at(f".{key}") from None
        made = _construct(cls, keywords)
        for key, apply in late:
            if key in data:
                object.__setattr__(made, key, apply(data[key]))
        return made

    return Converter(hint, convert, frozenset({OBJECT}), form=cls.__qualname__, fields=table, prepare=prepare)


def _construct(cls: type, keywords: dict[str, Any]) -> Any:
    try:
        return cls(**keywords)
    except Mismatch:
        raise
    except Exception as error:  # whatever the __init__ or __post_init__ of a user's class raises
        raise Mismatch(f"{cls.__qualname__} could not be built: {error!r}") from error


def _as_it_is(value: Any) -> Any:
    return value


class _LazyHints(Mapping[str, Any]):
    """The annotations of a class, resolved when first looked at: a class may name ones that come after it."""

    def __init__(self, resolve: Callable[[], dict[str, Any]]) -> None:
        self._resolve = resolve
        self._hints: dict[str, Any] | None = None

    def resolved(self) -> dict[str, Any]:
        if self._hints is None:
            self._hints = self._resolve()
        return self._hints

    def __getitem__(self, name: str) -> Any:
        return self.resolved()[name]

    def __iter__(self) -> Any:
        return iter(self.resolved())

    def __len__(self) -> int:
        return len(self.resolved())


def _typed_dict(compiler: Compiles, cls: Any, arguments: tuple[Any, ...], hint: Any) -> Converter:
    local_names = dict(compiler.local_names)
    hints = _LazyHints(lambda: class_hints(cls, arguments, local_names))
    required = frozenset(
        name
        for name, annotation in cls.__annotations__.items()
        if _is_required(annotation, name in cls.__required_keys__)
    )
    converters: dict[str, Converter] = {}

    def prepare() -> None:
        if not converters:
            converters.update({name: compiler.compile(annotation) for name, annotation in hints.resolved().items()})
            for converter in list(converters.values()):
                if converter.prepare is not None:
                    converter.prepare()

    def convert(data: Any) -> Any:
        if not converters:
            prepare()
        if data.__class__ is not dict:
            raise expected(f"an object for {cls.__qualname__}", data)
        rebuilt = {}
        for key, value in data.items():
            converter = converters.get(key)
            try:
                rebuilt[key] = value if converter is None else converter.apply(value)
            except Mismatch as mismatch:
                raise mismatch.at(f".{key}") from None
        for key in required:
            if key not in rebuilt:
                raise Mismatch(f"key {key} of {cls.__qualname__} is missing")
        return rebuilt

    table = FieldTable(frozenset(cls.__annotations__), required, hints)
    return Converter(hint, convert, frozenset({OBJECT}), form=cls.__qualname__, fields=table, prepare=prepare)


def _is_required(annotation: Any, by_class: bool) -> bool:
    text = getattr(annotation, "__forward_arg__", "")
    # With `from __future__ import annotations` the class cannot see its own markers.
    if get_origin(annotation) is NotRequired or text.startswith(("NotRequired[", "typing.NotRequired[")):
        return False
    if get_origin(annotation) is Required or text.startswith(("Required[", "typing.Required[")):
        return True
    return by_class


def _named_tuple(compiler: Compiles, cls: Any, arguments: tuple[Any, ...], hint: Any) -> Converter:
    hints = class_hints(cls, arguments, compiler.local_names)
    elements = tuple(compiler.compile(hints.get(name, Any)) for name in cls._fields)
    required = len(cls._fields) - len(cls._field_defaults)
    return fixed_tuple(hint, _Spread(cls), elements, required)


class _Spread:
    """Calls a class with the elements of a list."""

    def __init__(self, cls: type) -> None:
        self._cls = cls
        self.__qualname__ = cls.__qualname__

    def __call__(self, values: list[Any]) -> Any:
        return _construct_positional(self._cls, values)


def _construct_positional(cls: type, values: list[Any]) -> Any:
    try:
        return cls(*values)
    except Exception as error:  # whatever the __new__ of a user's class raises
        raise Mismatch(f"{cls.__qualname__} could not be built: {error!r}") from error


def _pydantic_model(model: Any, hint: Any) -> Converter:
    names = frozenset(info.alias or name for name, info in model.model_fields.items())
    required = frozenset(info.alias or name for name, info in model.model_fields.items() if info.is_required())
    hints = {info.alias or name: info.annotation for name, info in model.model_fields.items()}

    def convert(data: Any) -> Any:
        try:
            # By way of JSON, because a strict model takes text for a datetime from JSON only.
            return model.model_validate_json(orjson.dumps(data))
        except Exception as error:  # pydantic's own, or what a validator raises
            raise Mismatch(f"{model.__name__} could not be built: {error}") from error

    table = FieldTable(names, required, hints)
    return Converter(hint, convert, frozenset({OBJECT}), form=model.__qualname__, fields=table)
