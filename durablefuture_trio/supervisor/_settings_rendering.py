"""Settings as TOML, for people: what is in force, secrets masked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import msgspec

_MASK = "********"
_SECRETS = frozenset({"password"})
_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s,]*)@")


def render(settings: msgspec.Struct) -> str:
    """A TOML document with the tables of `settings`."""
    return "\n".join(_table(settings, "")).strip() + "\n"


def _table(table: msgspec.Struct, name: str) -> Iterator[str]:
    tables: list[tuple[str, msgspec.Struct]] = []
    arrays: list[tuple[str, tuple[msgspec.Struct, ...]]] = []
    lines: list[str] = []
    for field in table.__struct_fields__:
        value = getattr(table, field)
        if isinstance(value, msgspec.Struct):
            tables.append((field, value))
        elif isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
            arrays.append((field, value))
        elif name:  # what stands outside all tables is no key
            lines.append(f"# {field} is not set" if value is None else f"{field} = {_value(field, value)}")
    if lines:
        yield f"[{name}]"
        yield from lines
        yield ""
    prefix = f"{name}." if name else ""
    for field, inner in tables:
        yield from _table(inner, prefix + field)
    for field, items in arrays:
        for item in items:
            first, *rest = _table(item, prefix + field)
            yield f"[{first}]"
            yield from rest


def _value(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_value(key, item) for item in value) + "]"
    text = str(value)
    if key in _SECRETS:
        text = _MASK
    elif key == "url":
        text = _URL_PASSWORD.sub(f"{_MASK}@", text)
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
