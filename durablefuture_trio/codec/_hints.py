"""Reading annotations: names resolved, wrappers taken off, type variables filled in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import get_annotations
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Generic,
    NewType,
    NotRequired,
    Required,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)
from weakref import WeakKeyDictionary

from durablefuture_trio.codec._mismatch import HintError

_carried: WeakKeyDictionary[type, dict[str, Any]] = WeakKeyDictionary()
"""Resolved annotations of classes that came from another process by value, without the names around them."""

_WRAPPERS: set[Any] = {Annotated, ClassVar, Final, Required, NotRequired}


def bare(hint: Any) -> Any:
    """`hint` without Annotated, Final, Required and the like; NewTypes and type aliases as what they stand for."""
    while True:
        if get_origin(hint) in _WRAPPERS:
            hint = get_args(hint)[0]
        elif isinstance(hint, NewType):
            hint = hint.__supertype__
        elif isinstance(hint, TypeVar):
            hint = _meaning_of_variable(hint)
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        elif type(get_origin(hint)).__name__ == "TypeAliasType":
            alias = get_origin(hint)
            hint = substitute(alias.__value__, dict(zip(alias.__type_params__, get_args(hint), strict=False)))
        else:
            return hint


def _meaning_of_variable(variable: TypeVar) -> Any:
    if variable.__bound__ is not None:
        return variable.__bound__
    constraints = variable.__constraints__
    if constraints:
        union = constraints[0]
        for constraint in constraints[1:]:
            union = union | constraint
        return union
    return Any


def substitute(hint: Any, variables: Mapping[Any, Any]) -> Any:
    """`hint` with its type variables replaced."""
    if not variables:
        return hint
    if isinstance(hint, TypeVar):
        return variables.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    if not parameters or isinstance(hint, type):
        return hint
    return hint[tuple(variables.get(parameter, parameter) for parameter in parameters)]


def class_hints(cls: type, arguments: tuple[Any, ...], local_names: Mapping[str, Any]) -> dict[str, Any]:
    """The annotations of `cls` by name, inherited ones included, with the type arguments filled in.

    Each class of a hierarchy is read on its own, because the same type variable may mean another type in each.

    Raises:
        HintError: an annotation names something that cannot be found.
    """
    variables: dict[type, dict[Any, Any]] = {}
    _collect_variables(cls, arguments, variables)
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        own = get_annotations(base)
        if not own or base.__module__ == "builtins":
            continue
        resolved = _resolved(base, local_names)
        for name in own:
            hints[name] = substitute(resolved[name], variables.get(base, {}))
    if is_typeddict(cls):
        # TypedDicts keep no bases: their annotations are merged already.
        return {name: substitute(hint, variables[cls]) for name, hint in _resolved(cls, local_names).items()}
    return hints


def _resolved(cls: type, local_names: Mapping[str, Any]) -> dict[str, Any]:
    carried = _carried.get(cls)
    if carried is not None:
        return carried
    try:
        return get_type_hints(cls, localns={**local_names, cls.__name__: cls}, include_extras=True)
    except NameError as error:
        raise HintError(
            f"the annotations of class {cls.__module__}.{cls.__qualname__} cannot be resolved ({error}): define what "
            "they name at module level, outside of `if TYPE_CHECKING`"
        ) from error


def annotations_to_carry(hints: Iterable[Any], local_names: Mapping[str, Any]) -> dict[type, dict[str, Any]]:
    """The annotations of all classes in `hints` that another process cannot import, resolved.

    A class that is sent by value leaves behind the names its annotations refer to.

    Raises:
        HintError: an annotation names something that cannot be found.
    """
    found: dict[type, dict[str, Any]] = {}
    left = list(hints)
    while left:
        hint = bare(left.pop())
        left.extend(argument for argument in get_args(hint) if argument is not Ellipsis)
        cls = get_origin(hint) or hint
        if not isinstance(cls, type) or cls in found:
            continue
        for base in cls.__mro__:
            if base not in found and (base.__module__ == "__main__" or "<locals>" in base.__qualname__):
                found[base] = _resolved(base, local_names)
                left.extend(found[base].values())
    return found


def carry_annotations(annotations: Mapping[type, dict[str, Any]]) -> None:
    """Take what `annotations_to_carry` gave in the process the classes came from."""
    _carried.update(annotations)


def _collect_variables(cls: type, arguments: tuple[Any, ...], found: dict[type, dict[Any, Any]]) -> None:
    if cls in found:
        return
    parameters = getattr(cls, "__parameters__", ())
    mine = found[cls] = dict(zip(parameters, arguments, strict=False)) if arguments else {}
    for base in getattr(cls, "__orig_bases__", ()):
        origin = get_origin(base)
        if isinstance(origin, type) and origin is not Generic:
            _collect_variables(origin, tuple(substitute(item, mine) for item in get_args(base)), found)
        elif isinstance(base, type):
            _collect_variables(base, (), found)
