"""What activities and workflows have in common: a function, a name, a signature, and how they travel."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar

from durablefuture_trio.authoring._signature import Signature


class Definition:
    """A named function with a signature that can be recorded.

    Attributes:
        fn: the original function.
        name: the name it is registered under.
        signature: its parameters.
    """

    kind: ClassVar[str]
    name: str
    signature: Signature

    def __init__(self, fn: Callable[..., Any], name: str, signature: Signature, local_names: Mapping[str, Any]) -> None:
        self.fn = fn
        self.name = name
        self.signature = signature
        self._local_names = local_names
        self._hints: tuple[tuple[Any, ...], Any] | None = None

    @property
    def source(self) -> Any:
        """What was decorated: the function, or the class."""
        return self.fn

    @property
    def parameter_hints(self) -> tuple[Any, ...]:
        """The hints of the parameters, in order; Any where there is no annotation.

        Raises:
            TypeError: an annotation names something that cannot be found.
        """
        return self._resolved()[0]

    @property
    def result_hint(self) -> Any:
        """The hint of the result; Any if there is none.

        Raises:
            TypeError: an annotation names something that cannot be found.
        """
        return self._resolved()[1]

    def bind_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        """The arguments of a call in the order of the parameters, defaults filled in.

        Raises:
            TypeError: missing, unknown, doubled or too many arguments; the message names them.
        """
        return self.signature.bind(args, kwargs or {})

    def check_hints(self) -> None:
        """Make sure that values of all its hints can be encoded and rebuilt.

        Raises:
            TypeError: one cannot; the message names the parameter and says what to do.
        """
        self._check(*self._resolved())

    def _check(self, hints: tuple[Any, ...], result: Any) -> None:
        from durablefuture_trio.codec import check_hint

        for name, hint in (*zip(self.signature.names, hints, strict=True), ("return", result)):
            try:
                check_hint(hint, self._local_names)
            except TypeError as error:
                place = "its result" if name == "return" else f"parameter {name!r}"
                raise TypeError(f"{self.kind} {self.name}, {place}: {error}") from error

    def _resolved(self) -> tuple[tuple[Any, ...], Any]:
        if self._hints is None:
            self._hints = self.signature.resolve_hints(self._local_names)
            if self._local_names:
                # Classes defined in a function may refer to each other by names that only this definition knows.
                self._check(*self._hints)
        return self._hints

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name} ({self.source.__module__}.{self.source.__qualname__})>"

    # --- how it travels to child processes ---------------------------------------------------------------------------

    def is_importable(self) -> bool:
        """Whether another process can get at it by importing its module."""
        module, qualname = self.source.__module__, self.source.__qualname__
        if module == "__main__" or "<locals>" in qualname:
            return False
        found = definition_of(getattr(sys.modules.get(module), qualname, None))
        return found is not None and found.source is self.source

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_importable():
            return (_by_reference, (self.source.__module__, self.source.__qualname__, self._reference_state()))
        # Made empty first: the function's globals may lead back to this definition.
        return (_empty, (type(self),), self._state_by_value())

    def _state_by_value(self) -> dict[str, Any]:
        from durablefuture_trio.codec import annotations_to_carry

        hints, result = self._resolved()
        annotations = annotations_to_carry((*hints, result), self._local_names)
        return {"fn": self.source, "name": self.name, "hints": (hints, result), "annotations": annotations}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from durablefuture_trio.codec import carry_annotations

        self._restore(state)
        # Annotations that are strings cannot be resolved any more where the function has gone.
        self._hints = state["hints"]
        carry_annotations(state["annotations"])

    def _restore(self, state: dict[str, Any]) -> None:
        """Initialise from what `_state_by_value` gave."""
        raise NotImplementedError

    def _reference_state(self) -> dict[str, Any]:
        """What this copy has over the definition in its module."""
        return {}

    def with_reference_state(self, state: dict[str, Any]) -> Definition:
        """The copy that gave this `_reference_state`."""
        raise NotImplementedError


def definition_of(candidate: Any) -> Definition | None:
    """The definition that `candidate` is, or that its decoration with ``@workflow`` gave to a class; else None."""
    if isinstance(candidate, Definition):
        return candidate
    if isinstance(candidate, type):
        # Of this very class: a subclass that is not decorated is no workflow.
        attached = vars(candidate).get("__durable_workflow__")
        return attached if isinstance(attached, Definition) else None
    return None


def _by_reference(module: str, qualname: str, state: dict[str, Any]) -> Definition:
    found = definition_of(getattr(import_module(module), qualname))
    if found is None:
        raise AttributeError(f"{module}.{qualname} is no activity or workflow any more")
    return found.with_reference_state(state) if state else found


def _empty(cls: type[Definition]) -> Definition:
    return cls.__new__(cls)
