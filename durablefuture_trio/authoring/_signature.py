"""What a definition's function takes and returns: its parameters, their hints, and the binding of a call."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, get_type_hints

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_function(fn: Any, decorator: str, *, methods: bool = False) -> FunctionType:
    """Refuse what cannot be a definition.

    Args:
        fn: what was decorated.
        decorator: ``"@activity"`` or ``"@workflow"``, for the message.
        methods: methods of a class are welcome.

    Raises:
        TypeError: it is no function that can be found by name and called with positional arguments; the message says
            what to do.
    """
    if isinstance(fn, (staticmethod, classmethod)):
        if methods:
            raise TypeError(
                f"{decorator} does not go onto a {type(fn).__name__}: give {fn.__func__.__qualname__} a self instead"
            )
        raise TypeError(
            f"{decorator} does not go onto a {type(fn).__name__}: move the function {fn.__func__.__qualname__} out of "
            "its class to module level"
        )
    if isinstance(fn, type):
        raise TypeError(f"{decorator} does not go onto the class {fn.__qualname__}: write a function")
    if not isinstance(fn, FunctionType):
        raise TypeError(f"{decorator} goes onto a function written with def or async def, not onto {fn!r}")
    name = fn.__qualname__
    if fn.__name__ == "<lambda>":
        raise TypeError(f"{decorator} does not go onto a lambda, which has no name to find it by: write a def")
    if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
        raise TypeError(f"{decorator} {name} is a generator (it has a yield): collect the values and return them")
    if is_method(fn) and not methods:
        raise TypeError(
            f"{decorator} does not go onto the method {name}: move the function to module level and pass it what it "
            "needs of the object as arguments"
        )
    return fn


def is_method(fn: FunctionType) -> bool:
    """Whether the function was written inside a class."""
    return "." in fn.__qualname__.rpartition("<locals>.")[2]


def check_name(name: object, decorator: str) -> None:
    """Refuse a registered name that is no non-empty string (None: the function's own).

    Raises:
        TypeError: as said.
    """
    if name is not None and not (isinstance(name, str) and name):
        raise TypeError(f"{decorator}: name must be a non-empty string, not {name!r}")


class Signature:
    """The parameters of a function, all of which can be given by position.

    Args:
        fn: the function.
        kind: ``"activity"`` or ``"workflow"``, for messages.
        skip_first: leave out the first parameter (``self`` of a method).
        local_names: names its annotations may use besides those of its module.

    Raises:
        TypeError: it has ``*args``, ``**kwargs`` or keyword-only parameters.
    """

    def __init__(self, fn: FunctionType, kind: str, *, skip_first: bool = False) -> None:
        self._fn = fn
        self._kind = kind
        self.name = fn.__qualname__.rpartition("<locals>.")[2]
        parameters = list(inspect.signature(fn).parameters.values())[1 if skip_first else 0 :]
        for parameter in parameters:
            self._check_kind(parameter)
        self.names = tuple(parameter.name for parameter in parameters)
        self._defaults = tuple(parameter.default for parameter in parameters)
        self._by_name = frozenset(
            parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.POSITIONAL_ONLY
        )
        self.required = sum(default is inspect.Parameter.empty for default in self._defaults)
        self._count = len(self.names)

    def _check_kind(self, parameter: inspect.Parameter) -> None:
        if parameter.kind in _POSITIONAL:
            return
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(
                f"{self._kind} {self.name}: parameter {parameter.name!r} is keyword-only, but arguments are recorded "
                "by position: take the bare * (or *args) before it away; callers may still name it"
            )
        stars, instead = (
            ("*", "a list") if parameter.kind is inspect.Parameter.VAR_POSITIONAL else ("**", "a dict or a dataclass")
        )
        raise TypeError(
            f"{self._kind} {self.name}: {stars}{parameter.name} cannot be recorded, because its arguments have no "
            f"place in the signature: take {instead} instead"
        )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of a call in the order of the parameters, defaults filled in.

        Raises:
            TypeError: missing, unknown, doubled or too many arguments; the message names them.
        """
        given = len(args)
        if given == self._count and not kwargs:
            return args
        if given > self._count:
            takes = self._count if self.required == self._count else f"{self.required} to {self._count}"
            raise TypeError(f"{self._kind} {self.name} takes {takes} arguments ({', '.join(self.names)}), not {given}")
        bound = list(args)
        for name, default in zip(self.names[given:], self._defaults[given:], strict=True):
            if name in kwargs and name in self._by_name:
                bound.append(kwargs[name])
            else:
                bound.append(default)
        missing = [name for name, value in zip(self.names, bound, strict=True) if value is inspect.Parameter.empty]
        if missing:
            raise TypeError(f"{self._kind} {self.name} is missing {_listed('argument', missing)}")
        allowed = self._by_name.intersection(self.names[given:])
        if not kwargs.keys() <= allowed:
            wrong = [name for name in kwargs if name not in allowed]
            doubled = [name for name in wrong if name in self.names[:given] and name in self._by_name]
            if doubled:
                raise TypeError(f"{self._kind} {self.name} got {_listed('argument', doubled)} twice")
            raise TypeError(f"{self._kind} {self.name} has no parameter {', '.join(map(repr, wrong))}")
        return tuple(bound)

    def resolve_hints(self, local_names: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
        """The hints of the parameters and of the result; Any where there is no annotation.

        Raises:
            TypeError: an annotation names something that cannot be found.
        """
        names = {**_closure_names(self._fn), **local_names}
        try:
            hints = get_type_hints(self._fn, localns=names, include_extras=True)
        except NameError as error:
            raise TypeError(
                f"the annotations of {self._kind} {self._fn.__module__}.{self._fn.__qualname__} cannot be resolved "
                f"({error}): define what they name at module level, outside of `if TYPE_CHECKING`"
            ) from error
        return tuple(hints.get(name, Any) for name in self.names), hints.get("return", Any)


def _listed(noun: str, names: list[str]) -> str:
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"


def _closure_names(fn: FunctionType) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:
            # A variable of the enclosing function that has no value yet.
            continue
    return names


def enclosing_names(fn: Callable[..., Any], depth: int) -> dict[str, Any]:
    """What annotations of a function defined inside another one may name: the classes among that one's variables.

    Args:
        depth: how many calls up from the caller the decorated function's surroundings are.
    """
    if "<locals>" not in fn.__qualname__:
        return {}
    frame = sys._getframe(depth + 1)  # noqa: SLF001 - the only way to the names around a decorated function
    names: dict[str, Any] = {}
    around = set(fn.__qualname__.replace(".<locals>", "").split("."))
    while frame.f_code.co_name in around:
        for name, value in frame.f_locals.items():
            if isinstance(value, type) or hasattr(value, "__origin__") or hasattr(value, "__supertype__"):
                names.setdefault(name, value)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return names
