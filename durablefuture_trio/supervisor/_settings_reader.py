"""Reads structs from a TOML file and the environment, and reports every problem with its file, line and key.

It knows nothing of what the keys mean: types, ranges and the words for what was expected come from the structs.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec

from durablefuture_trio.errors import ConfigError
from durablefuture_trio.supervisor._toml_lines import Path, key_lines

ENVIRONMENT_PREFIX = "DURABLEFUTURE_"
PATH_FIELD = {"path": True}
"""``extra`` of a `msgspec.Meta`: the value is a path, to be made absolute."""
NOT_A_KEY = {"key": False}
"""``extra`` of a `msgspec.Meta`: the field is not configuration."""

S = TypeVar("S", bound=msgspec.Struct)


class Report:
    """The problems found so far, and where each key was set."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._lines: dict[Path, int] = {}
        self._variables: dict[Path, str] = {}
        self._found: list[tuple[int, str]] = []

    def locate(self, lines: dict[Path, int]) -> None:
        self._lines = lines

    def set_by_variable(self, path: Path, variable: str) -> None:
        self._variables[path] = variable

    def variable_of(self, path: Path) -> str | None:
        return self._variables.get(path)

    def problem(self, path: Path, text: str) -> None:
        """A problem with the value at `path`."""
        variable = self._variables.get(path)
        if variable is not None:
            self.variable_problem(variable, text)
        else:
            self.line_problem(self._line_of(path), f"{_words(path)}: {text}" if path else text)

    def line_problem(self, line: int, text: str) -> None:
        where = f"{self._file}:{line}: " if line and self._file else f"{self._file}: " if self._file else ""
        self._found.append((line, where + text))

    def variable_problem(self, variable: str, text: str) -> None:
        self._found.append((1 << 60, f"environment variable {variable}: {text}"))

    def raise_if_any(self) -> None:
        if self._found:
            raise ConfigError([text for _, text in sorted(self._found, key=lambda found: found[0])])

    def _line_of(self, path: Path) -> int:
        while path:
            if path in self._lines:
                return self._lines[path]
            path = path[:-1]
        return 0


def read_document(path: str | os.PathLike[str], report: Report) -> dict[str, Any]:
    """The tables of a TOML file; problems with the file itself end the reading at once.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it is no TOML.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file; name the configuration with --config FILE"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_problem(path, text, error)]) from error
    report.locate(key_lines(text.replace("\r\n", "\n")))
    return document


def _syntax_problem(path: str | os.PathLike[str], text: str, error: tomllib.TOMLDecodeError) -> str:
    position = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
    if position is None:  # "(at end of document)"
        return f"{path}:{text.count(chr(10)) + 1}: not valid TOML: {error}"
    reason = str(error)[: position.start()]
    return f"{path}:{position[1]}:{position[2]}: not valid TOML: {reason}"


# --- the environment ------------------------------------------------------------------------------------------------


def overlay_environment(
    document: dict[str, Any], settings_type: type[msgspec.Struct], environ: Mapping[str, str], report: Report
) -> None:
    """Put the values of ``DURABLEFUTURE_*`` variables into the document, over what the file says."""
    known = {"_".join(str(part) for part in path).upper(): (path, kind) for path, kind in _leaves(settings_type)}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).replace("__", "_")
        generic, indexes = _split_indexes(name)
        found = known.get(generic)
        if found is None:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {ENVIRONMENT_PREFIX}{close[0]}?" if close else ""
            report.variable_problem(variable, f"there is no such setting{hint}")
            continue
        path, kind = found
        target = tuple(indexes.pop(0) if part == "#" else part for part in path)
        try:
            value = _parse_text(text, kind)
        except ValueError:
            report.variable_problem(variable, f"expected {_expected(kind)}; got {json.dumps(text)}")
            continue
        if _put(document, target, value):
            report.set_by_variable(target, variable)
        else:
            report.variable_problem(variable, "the table it belongs to does not exist in the configuration")


def _split_indexes(name: str) -> tuple[str, list[int]]:
    indexes = [int(part) for part in name.split("_") if part.isdigit()]
    return "_".join("#" if part.isdigit() else part for part in name.split("_")), indexes


def _leaves(settings_type: type[msgspec.Struct], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    for field in _keys(settings_type):
        inner = _struct_in(field.type)
        if inner is None:
            yield (*prefix, field.encode_name), field.type
        elif _is_array(field.type):
            yield from _leaves(inner, (*prefix, field.encode_name, "#"))
        else:
            yield from _leaves(inner, (*prefix, field.encode_name))


def _parse_text(text: str, kind: Any) -> object:
    accepted = _plain_types(kind)
    if tuple in accepted:
        return [part.strip() for part in text.split(",") if part.strip()]
    if bool in accepted:
        if text.lower() not in {"true", "false", "1", "0"}:
            raise ValueError(text)
        return text.lower() in {"true", "1"}
    if int in accepted:
        return int(text)
    if float in accepted:
        return float(text)
    return text


def _put(document: dict[str, Any], path: Path, value: object) -> bool:
    place: Any = document
    for part, following in itertools.pairwise(path):
        if isinstance(part, int):
            if not isinstance(place, list) or part > len(place):
                return False
            if part == len(place):
                place.append({})
            place = place[part]
        elif isinstance(place, dict):
            place = place.setdefault(part, [] if isinstance(following, int) else {})
        else:
            return True  # the file has no table here, which is reported as its own problem
    if isinstance(place, dict):
        place[path[-1]] = value
    return True


# --- values ---------------------------------------------------------------------------------------------------------


class TableReader:
    """Builds structs out of tables. Values that are wrong are reported and left out, so that the rest is seen too.

    Args:
        report: takes the problems.
        root: the outermost struct, for hints where a key belongs.
        file_dir: what relative paths in the file are relative to.
    """

    def __init__(self, report: Report, root: type[msgspec.Struct], file_dir: str) -> None:
        self._report = report
        self._file_dir = file_dir
        self._homes: dict[str, str] = {}
        for path, _ in _leaves(root):
            self._homes.setdefault(str(path[-1]), _table_words(path[:-1]))

    def read(self, settings_type: type[S], table: object, path: Path = ()) -> S:
        """A `settings_type` with what is right in `table`, and defaults for the rest."""
        if not isinstance(table, dict):
            self._report.problem(path, f"expected a table, {_table_words(path)}; got {_show(table)}")
            return settings_type()
        fields = {field.encode_name: field for field in _keys(settings_type)}
        for key in table:
            if key not in fields:
                kind = "table" if isinstance(table[key], dict) else "key"
                self._report.problem((*path, key), f"unknown {kind}{self._hint(key, fields)}")
        values: dict[str, Any] = {}
        for key, field in fields.items():
            if key in table:
                value = self._field(field.type, table[key], (*path, key))
                if value is not _WRONG:
                    values[field.name] = value
            elif _is_path(field.type) and isinstance(field.default, str):
                values[field.name] = os.path.join(self._file_dir, field.default)
        for key, field in fields.items():
            inner = _struct_in(field.type)
            if key not in table and inner is not None and isinstance(field.default, msgspec.Struct):
                values[field.name] = self.read(inner, {}, (*path, key))
        return settings_type(**values)

    def _field(self, kind: Any, value: object, path: Path) -> Any:
        inner = _struct_in(kind)
        if inner is None:
            return self._value(kind, value, path)
        if not _is_array(kind):
            return self.read(inner, value, path)
        if not isinstance(value, list):
            self._report.problem(path, f"expected [[{path[-1]}]], with two brackets: there may be several")
            return _WRONG
        return tuple(self.read(inner, item, (*path, index)) for index, item in enumerate(value))

    def _value(self, kind: Any, value: object, path: Path) -> Any:
        try:
            converted = msgspec.convert(value, kind, strict=True)
        except msgspec.ValidationError:
            converted = _WRONG
        if converted is _WRONG or value is None or (isinstance(converted, float) and not math.isfinite(converted)):
            self._report.problem(path, f"expected {_expected(kind)}; got {_show(value)}")
            return _WRONG
        if _is_path(kind) and isinstance(converted, str):
            base = os.getcwd() if self._report.variable_of(path) else self._file_dir
            return os.path.normpath(os.path.join(base, os.path.expanduser(converted)))
        return converted

    def _hint(self, key: str, fields: Mapping[str, object]) -> str:
        close = difflib.get_close_matches(key, fields, n=1, cutoff=0.6)
        if close:
            return f"; did you mean {close[0]!r}?"
        if key in self._homes:
            return f"; it belongs to {self._homes[key]}"
        return f"; known here: {', '.join(fields)}"


_WRONG: Any = object()


def _keys(settings_type: type[msgspec.Struct]) -> list[msgspec.structs.FieldInfo]:
    fields = msgspec.structs.fields(settings_type)
    return [field for field in fields if all(meta.extra != NOT_A_KEY for meta in _metas(field.type))]


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    """The struct that a field holds, directly, optionally, or in a tuple."""
    for part in _parts(kind):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            return part
    return None


def _parts(kind: Any) -> Iterator[Any]:
    yield kind
    for argument in get_args(kind):
        yield from _parts(argument)


def _is_array(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _plain_types(kind: Any) -> set[type]:
    origin = get_origin(kind)
    if origin is Annotated:
        return _plain_types(get_args(kind)[0])
    if origin is tuple:
        return {tuple}
    if origin in _UNIONS:
        return {found for argument in get_args(kind) for found in _plain_types(argument)}
    if origin is not None:  # Literal
        return {type(argument) for argument in get_args(kind)}
    return {kind}


_UNIONS = (Union, type(int | str))


def _metas(kind: Any) -> Iterator[msgspec.Meta]:
    if get_origin(kind) is Annotated:
        yield from (item for item in get_args(kind)[1:] if isinstance(item, msgspec.Meta))
    elif get_origin(kind) in _UNIONS:
        for argument in get_args(kind):
            yield from _metas(argument)


def _expected(kind: Any) -> str:
    return next((meta.description for meta in _metas(kind) if meta.description), "another type")


def _is_path(kind: Any) -> bool:
    return any(meta.extra == PATH_FIELD for meta in _metas(kind))


def _show(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            text = json.dumps(value, ensure_ascii=False)
            return f"the string {text if len(text) <= 80 else text[:77] + '...'}"
        case int() | float():
            return f"the number {value}"
        case dict():
            return "a table"
        case list():
            return "the list " + json.dumps(value, ensure_ascii=False, default=str)[:80]
        case _:
            return str(value)


def _words(path: Path) -> str:
    """``[sandbox] processes`` for ``("sandbox", "processes")``."""
    if len(path) == 1:
        return f"[{path[0]}]"
    if isinstance(path[-1], int):  # a table of an array of tables, or an item of a list
        return _table_words(path) if len(path) == 2 else _words(path[:-1])
    return f"{_table_words(path[:-1])} {path[-1]}"


def _table_words(path: Path) -> str:
    names = ".".join(str(part) for part in path if not isinstance(part, int) and part != "#")
    return f"[[{names}]]" if path and (isinstance(path[-1], int) or path[-1] == "#") else f"[{names}]"
