"""Signals, queries and updates: typed references for clients, and the handlers that a run has for them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial, update_wrapper
from importlib import import_module
from inspect import iscoroutinefunction
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

from durablefuture_trio.authoring._definition import Definition
from durablefuture_trio.authoring._runtime import current_run
from durablefuture_trio.authoring._signature import Signature, check_function, enclosing_names, is_method

if TYPE_CHECKING:
    from durablefuture_trio.codec.payload import Payload

P = ParamSpec("P")
Q = ParamSpec("Q")
C = TypeVar("C", covariant=True)
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class MessageDefinition(Definition, Generic[P, C]):
    """What runs can be told or asked, by its name: a typed reference for clients.

    Attributes:
        fn: the original function.
        name: the name it is sent by.
        is_async: whether it is an ``async def``.
        is_method: it belongs to a workflow class; its signature is without ``self``.
    """

    fn: Callable[P, C]

    def __init__(self, fn: FunctionType, name: str | None, *, local_names: Mapping[str, Any] | None = None) -> None:
        self.is_async = iscoroutinefunction(fn)
        self.is_method = is_method(fn)
        signature = Signature(fn, self.kind, skip_first=self.is_method)
        super().__init__(fn, name or fn.__name__, signature, local_names or {})
        update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C:
        """Just call the function."""
        return self.fn(*args, **kwargs)

    def decode(self, payload: Payload) -> tuple[Any, ...]:
        """The arguments that were sent, rebuilt by the hints of the parameters, defaults filled in.

        Raises:
            PayloadError: they do not fit the hints. TypeError: some are missing.
        """
        from durablefuture_trio.codec import decode_arguments

        return self.signature.bind(decode_arguments(payload, self.parameter_hints), {})

    def bound_to(self, instance: object) -> Callable[..., Any]:
        """The method of this very object."""
        return partial(self.fn, instance)  # type: ignore[arg-type]  # P of a method begins with its self

    def _register_handler(self, fn: F) -> F:
        """What ``@ref.handler`` does."""
        function = check_function(fn, f"@{self.name}.handler", methods=True)
        handler = type(self)(function, self.name, local_names=enclosing_names(function, depth=2))
        self._check_handler(handler)
        if handler.is_method:
            handler.take_contract_of(self)
            return handler  # type: ignore[return-value]  # its object calls it like the method it is
        run = current_run.get()
        if run is not None:
            run.add_handler(self, fn, is_async=handler.is_async)
        elif "<locals>" not in function.__qualname__:
            raise TypeError(
                f"@{self.name}.handler goes onto a function inside a workflow, or onto a method of a workflow class: "
                f"each run has its own handler, and at module level there is no run"
            )
        return fn

    def _check_handler(self, handler: MessageDefinition[..., Any]) -> None:
        wanted = len(self.signature.names)
        if not handler.signature.required <= wanted <= len(handler.signature.names):
            raise TypeError(
                f"the handler {handler.signature.name} of {self.kind} {self.name} must take what the {self.kind} "
                f"carries: {', '.join(self.signature.names) or 'nothing'}"
            )

    def take_contract_of(self, declared: MessageDefinition[..., Any]) -> None:
        """Handle what was declared elsewhere: that says how arguments are rebuilt, the method only has to take them."""
        self.signature, self._hints, self._local_names = declared.signature, declared._hints, declared._local_names

    # --- how it travels to child processes ---------------------------------------------------------------------------

    def is_importable(self) -> bool:
        module, qualname = self.source.__module__, self.source.__qualname__
        if module == "__main__" or "<locals>" in qualname:
            return False
        return getattr(_found(sys.modules.get(module), qualname), "source", None) is self.source

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_importable():
            return (_by_reference, (self.source.__module__, self.source.__qualname__))
        return super().__reduce__()

    def _state_by_value(self) -> dict[str, Any]:
        return {**super()._state_by_value(), "signature": self.signature}

    def _restore(self, state: dict[str, Any]) -> None:
        MessageDefinition.__init__(self, state["fn"], state["name"])
        self.signature = state["signature"]


class SignalDefinition(MessageDefinition[P, Any], Generic[P]):
    """Something that runs can be told; nobody waits for an answer."""

    kind: ClassVar[Literal["signal"]] = "signal"

    @overload
    def __get__(self: SignalDefinition[Concatenate[T, Q]], instance: None, owner: type, /) -> SignalDefinition[Q]: ...
    @overload
    def __get__(self: SignalDefinition[Concatenate[T, Q]], instance: T, owner: type, /) -> Callable[Q, Any]: ...
    def __get__(self, instance: Any, owner: type, /) -> Any:
        return self if instance is None else self.bound_to(instance)

    def handler(self, fn: F) -> F:
        """Handle the signal with this function, in the run (or the workflow class) it is defined in.

            @approve.handler
            def on_approve(approver: str) -> None: ...

        A ``def`` is called as soon as the signal comes, an ``async def`` runs as a task of the run. What it raises
        fails the run. Signals that came before are handed over now, in order. Another handler of the name takes over.

        Raises:
            TypeError: it cannot take what the signal carries, or stands at module level.
        """
        return self._register_handler(fn)


class QueryDefinition(MessageDefinition[P, C], Generic[P, C]):
    """Something that runs can be asked, without changing them. Its handler is a plain ``def``."""

    kind: ClassVar[Literal["query"]] = "query"

    @overload
    def __get__(
        self: QueryDefinition[Concatenate[T, Q], C], instance: None, owner: type, /
    ) -> QueryDefinition[Q, C]: ...
    @overload
    def __get__(self: QueryDefinition[Concatenate[T, Q], C], instance: T, owner: type, /) -> Callable[Q, C]: ...
    def __get__(self, instance: Any, owner: type, /) -> Any:
        return self if instance is None else self.bound_to(instance)

    def __init__(self, fn: FunctionType, name: str | None, *, local_names: Mapping[str, Any] | None = None) -> None:
        _check_plain(fn, f"query {fn.__qualname__}")
        super().__init__(fn, name, local_names=local_names)

    def handler(self, fn: F) -> F:
        """Answer the query with this plain ``def``, in the run (or the workflow class) it is defined in. It only looks:
        nothing durable may be called in it. What it raises is the answer.

        Raises:
            TypeError: it is an ``async def``, cannot take what the query carries, or stands at module level.
        """
        return self._register_handler(fn)


class UpdateDefinition(MessageDefinition[P, C], Generic[P, C]):
    """Something that runs are asked to do, and to answer."""

    kind: ClassVar[Literal["update"]] = "update"

    def __init__(self, fn: FunctionType, name: str | None, *, local_names: Mapping[str, Any] | None = None) -> None:
        super().__init__(fn, name, local_names=local_names)
        self._validator: Callable[..., Any] | None = None

    @overload
    def __get__(
        self: UpdateDefinition[Concatenate[T, Q], C], instance: None, owner: type, /
    ) -> UpdateDefinition[Q, C]: ...
    @overload
    def __get__(self: UpdateDefinition[Concatenate[T, Q], C], instance: T, owner: type, /) -> Callable[Q, C]: ...
    def __get__(self, instance: Any, owner: type, /) -> Any:
        return self if instance is None else self.bound_to(instance)

    def handler(self, fn: F) -> F:
        """Carry out the update with this function, in the run (or the workflow class) it is defined in. What it returns
        or raises is the answer. Updates that came before are carried out now, in order.

        Raises:
            TypeError: it cannot take what the update carries, or stands at module level.
        """
        return self._register_handler(fn)

    def validator(self, fn: F) -> F:
        """Ask this plain ``def`` first, with the same arguments: what it raises refuses the update, which then leaves
        no trace in the history. It only looks: nothing durable may be called in it.

        At module level it goes for all runs, inside a workflow for that run (below the handler), in a workflow class it
        is a method.

        Raises:
            TypeError: it is an ``async def``, or cannot take what the update carries.
        """
        function = check_function(fn, f"@{self.name}.validator", methods=True)
        _check_plain(function, f"the validator {function.__qualname__}")
        self._check_handler(_Validator(function, self.name))
        run = current_run.get()
        if run is not None and "<locals>" in function.__qualname__ and not is_method(function):
            run.add_validator(self.name, fn)
        else:
            self._validator = function
        return fn

    def validator_of(self, instance: object | None) -> Callable[..., Any] | None:
        """The validator given where the update is defined; `instance` is that of the workflow class."""
        validator = self._validator
        if isinstance(validator, FunctionType) and is_method(validator) and instance is not None:
            return partial(validator, instance)
        return validator

    def take_contract_of(self, declared: MessageDefinition[..., Any]) -> None:
        super().take_contract_of(declared)
        self._validator = declared.validator_of(None) if isinstance(declared, UpdateDefinition) else None

    def _state_by_value(self) -> dict[str, Any]:
        return {**super()._state_by_value(), "validator": self._validator}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self._validator = state["validator"]


class _Validator(MessageDefinition[..., Any]):
    """For the check of its parameters alone."""

    kind = "validator"


def _check_plain(fn: FunctionType, what: str) -> None:
    if iscoroutinefunction(fn):
        raise TypeError(f"{what} is an `async def`, but it only looks at what the run holds: write a plain `def`")


def _found(module: object, qualname: str) -> Any:
    found = module
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _by_reference(module: str, qualname: str) -> MessageDefinition[..., Any]:
    found = _found(import_module(module), qualname)
    if not isinstance(found, MessageDefinition):
        raise AttributeError(f"{module}.{qualname} is no signal, query or update any more")
    return found


def messages_of(cls: type) -> dict[str, MessageDefinition[..., Any]]:
    """The handlers among the methods of a workflow class, by attribute, in the order they were written in.

    Raises:
        TypeError: two of a kind have one name.
    """
    attributes = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base))
    found: dict[str, MessageDefinition[..., Any]] = {}
    names: dict[tuple[str, str], str] = {}
    for attribute in attributes:
        message = next(vars(base)[attribute] for base in cls.__mro__ if attribute in vars(base))
        if not isinstance(message, MessageDefinition):
            continue
        other = names.setdefault((message.kind, message.name), attribute)
        if other != attribute:
            raise TypeError(
                f"workflow class {cls.__qualname__} has two handlers of {message.kind} {message.name}: {other} and "
                f"{attribute}"
            )
        found[attribute] = message
    return found


def define_message(cls: Callable[..., Any], decorator: str, fn: Any, name: str | None, *, depth: int = 2) -> Any:
    """What the decorators do. `cls` makes the definition; inside a run a closure is its handler at once."""
    function = check_function(fn, decorator, methods=True)
    message: MessageDefinition[..., Any] = cls(function, name, local_names=enclosing_names(function, depth=depth))
    run = current_run.get()
    # A module that is imported while a run is stepped, or a class that is made there, only declares.
    if run is not None and "<locals>" in function.__qualname__ and not message.is_method:
        run.add_handler(message, function, is_async=message.is_async)
    return message
