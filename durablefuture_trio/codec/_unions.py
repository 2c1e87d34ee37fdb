"""Converters of unions, and the check that their members can be told apart."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import orjson

from durablefuture_trio.codec._converter import ALL_KINDS, KIND_OF, NULL, OBJECT, TEXT, Converter
from durablefuture_trio.codec._hints import bare
from durablefuture_trio.codec._mismatch import HintError, Mismatch, described

# Texts that can be told apart by how they look; a timedelta's may look like base64, a str's like anything.
_EXCLUSIVE_FORMS = frozenset({"datetime", "date", "time", "timedelta", "uuid", "decimal"})


def optional(hint: Any, member: Converter) -> Converter:
    """``X | None``."""
    inner = member.convert
    if inner is None:
        return member

    def convert(data: Any) -> Any:
        return None if data is None else inner(data)

    return Converter(
        hint,
        convert,
        member.kinds | {NULL},
        also=member.also,
        form=member.form,
        values=member.values,
        fields=member.fields,
        prepare=member.prepare,
    )


def union(hint: Any, members: list[Converter]) -> Converter:
    """``A | B | …``, in which each value fits one member only.

    Raises:
        HintError: two members could not be told apart in a payload.
    """
    for index, first in enumerate(members):
        for second in members[index + 1 :]:
            _check_distinct(hint, first, second)
    by_kind: dict[str, tuple[Converter, ...]] = {}
    for kind in ALL_KINDS:
        exact = [member for member in members if kind in member.kinds]
        by_kind[kind] = tuple(exact or [member for member in members if kind in member.also])

    def convert(data: Any) -> Any:
        candidates = by_kind[KIND_OF.get(data.__class__, OBJECT)]
        if len(candidates) > 1 and data.__class__ is dict:
            candidates = _by_fields(candidates, data.keys())
        problems: list[Mismatch] = []
        for candidate in candidates:
            try:
                return candidate.apply(data)
            except Mismatch as mismatch:
                problems.append(mismatch)
        if len(problems) == 1:
            raise problems[0]
        words = "; ".join(f"as {_name(c)}: {p}" for c, p in zip(candidates, problems, strict=True))
        raise Mismatch(
            f"{described(data)} is none of {' | '.join(map(_name, members))}{f' ({words})' if words else ''}"
        )

    def prepare() -> None:
        for member in members:
            if member.prepare is not None:
                member.prepare()

    return Converter(
        hint,
        convert,
        frozenset().union(*(member.kinds for member in members)),
        also=frozenset().union(*(member.also for member in members)),
        form="union",
        prepare=prepare,
    )


def _by_fields(candidates: tuple[Converter, ...], names: Any) -> tuple[Converter, ...]:
    """Those whose fields are exactly `names`; else those that could be made from them (a field was added since)."""
    exact = tuple(one for one in candidates if one.fields is None or one.fields.names == names)
    if exact:
        return exact
    return tuple(one for one in candidates if one.fields is None or one.fields.required <= names)


def _name(member: Converter) -> str:
    hint = member.hint
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _check_distinct(hint: Any, first: Converter, second: Converter) -> None:
    shared = first.kinds & second.kinds
    if not shared or _distinct(shared, first, second):
        return
    raise HintError(
        f"in {hint} the members {_name(first)} and {_name(second)} look alike in a payload, so that a value of one "
        "could come back as the other: give the classes a field of different Literal types, or wrap one of them in a "
        "dataclass"
    )


def _distinct(shared: frozenset[str], first: Converter, second: Converter) -> bool:
    forms = {first.form, second.form}
    if "values" in forms:
        return _values_distinct(first, second)
    if shared == {TEXT}:
        return (forms <= _EXCLUSIVE_FORMS and len(forms) == 2) or forms == {"base64", "datetime"}
    if shared == {OBJECT} and first.fields is not None and second.fields is not None:
        return first.fields.names != second.fields.names or _literal_tells(first, second)
    # Containers of the same class: whichever member fits, the value is of that class.
    return len(forms) == 1 and first.form not in {"", "union"} and first.fields is None


def _values_distinct(first: Converter, second: Converter) -> bool:
    finite, other = (first, second) if first.form == "values" else (second, first)
    if finite.form == other.form:
        return not finite.values & other.values or _both_plain(finite, other)
    if other.exact is not None:
        # A Literal's values are of the other member's class themselves; an Enum's are not.
        return not isinstance(finite.hint, type)
    for text in finite.values:
        try:
            other.apply(orjson.loads(text))
        except Mismatch:
            continue
        return False
    return True


def _both_plain(first: Converter, second: Converter) -> bool:
    return not isinstance(first.hint, type) and not isinstance(second.hint, type)


def _literal_tells(first: Converter, second: Converter) -> bool:
    assert first.fields is not None
    assert second.fields is not None
    for name, hint in first.fields.hints.items():
        mine = _literal_values(hint)
        theirs = _literal_values(second.fields.hints.get(name))
        if mine and theirs and not mine & theirs:
            return True
    return False


def _literal_values(hint: Any) -> frozenset[Any]:
    plain = bare(hint)
    if get_origin(plain) is not Literal:
        return frozenset()
    return frozenset((type(value), value) for value in get_args(plain))
