"""The part of `workflow` that deals with messages: the decorators, and what workflow code asks of them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from durablefuture_trio.authoring._messages import (
    QueryDefinition,
    SignalDefinition,
    UpdateDefinition,
    define_message,
)
from durablefuture_trio.authoring._runtime import running
from durablefuture_trio.authoring._signature import check_name

if TYPE_CHECKING:
    from trio.abc import ReceiveChannel

    from durablefuture_trio.codec.payload import Payload

P = ParamSpec("P")
C = TypeVar("C")
T = TypeVar("T")
A1 = TypeVar("A1")
A2 = TypeVar("A2")
A3 = TypeVar("A3")


class _Factory:
    """A decorator with options: what the parentheses return."""

    def __init__(self, cls: Callable[..., Any], decorator: str, name: str | None) -> None:
        self._cls = cls
        self._decorator = decorator
        self._name = name

    def _define(self, fn: Any) -> Any:
        return define_message(self._cls, self._decorator, fn, self._name, depth=4)


class _SignalFactory(_Factory):
    def __call__(self, fn: Callable[P, object], /) -> SignalDefinition[P]:
        definition: SignalDefinition[P] = self._define(fn)
        return definition


class _QueryFactory(_Factory):
    def __call__(self, fn: Callable[P, C], /) -> QueryDefinition[P, C]:
        definition: QueryDefinition[P, C] = self._define(fn)
        return definition


class _UpdateFactory(_Factory):
    def __call__(self, fn: Callable[P, C], /) -> UpdateDefinition[P, C]:
        definition: UpdateDefinition[P, C] = self._define(fn)
        return definition


def _check_options(fn: Any, name: str | None, decorator: str) -> None:
    """Refuse a function together with options, and a name that is none.

    Raises:
        TypeError: as said.
    """
    if fn is not None and name is not None:
        raise TypeError(f"{decorator} takes either the function or options: write {decorator}(...) above the def")
    check_name(name, decorator)


class MessageHelpers:
    """``@workflow.signal``, ``@workflow.query``, ``@workflow.update``, and what goes with them."""

    @overload
    def signal(self, fn: Callable[P, object], /) -> SignalDefinition[P]: ...
    @overload
    def signal(self, /, *, name: str | None = None) -> _SignalFactory: ...
    def signal(self, fn: Any = None, /, *, name: str | None = None) -> Any:
        """Define a signal: something runs can be told.

        At module level it declares what can be sent, and ``@ref.handler`` inside a workflow handles it; inside a
        workflow function it is the run's handler at once; in a workflow class it is a method of each run's object:

            @workflow
            async def order(customer: str) -> None:
                approved_by = ""

                @workflow.signal
                def approve(approver: str) -> None:
                    nonlocal approved_by
                    approved_by = approver

                await workflow.wait_until(lambda: approved_by)

        A ``def`` is called as soon as the signal comes, an ``async def`` runs as a task of the run. What it raises
        fails the run. A signal without a handler waits for one (or for a `signal_channel`).

        Args:
            name: what it is sent by; default the function's ``__name__``.

        Raises:
            TypeError: it cannot be a handler; the message says what to do.
        """
        _check_options(fn, name, "@workflow.signal")
        if fn is None:
            return _SignalFactory(SignalDefinition, "@workflow.signal", name)
        return define_message(SignalDefinition, "@workflow.signal", fn, name)

    @overload
    def query(self, fn: Callable[P, C], /) -> QueryDefinition[P, C]: ...
    @overload
    def query(self, /, *, name: str | None = None) -> _QueryFactory: ...
    def query(self, fn: Any = None, /, *, name: str | None = None) -> Any:
        """Define a query: something runs can be asked. It looks and changes nothing, so it is a plain ``def`` and calls
        nothing durable; it goes where a `signal` goes.

        Args:
            name: what it is sent by; default the function's ``__name__``.

        Raises:
            TypeError: it cannot be a handler; the message says what to do.
        """
        _check_options(fn, name, "@workflow.query")
        if fn is None:
            return _QueryFactory(QueryDefinition, "@workflow.query", name)
        return define_message(QueryDefinition, "@workflow.query", fn, name)

    @overload
    def update(self, fn: Callable[P, C], /) -> UpdateDefinition[P, C]: ...
    @overload
    def update(self, /, *, name: str | None = None) -> _UpdateFactory: ...
    def update(self, fn: Any = None, /, *, name: str | None = None) -> Any:
        """Define an update: something runs are asked to do, and whose result (or failure) the sender waits for. It goes
        where a `signal` goes, and may have a validator:

            @workflow.update
            async def set_quantity(quantity: int) -> float: ...

            @set_quantity.validator
            def check(quantity: int) -> None:
                if quantity <= 0:
                    raise ValueError("the quantity must be positive")

        Args:
            name: what it is sent by; default the function's ``__name__``.

        Raises:
            TypeError: it cannot be a handler; the message says what to do.
        """
        _check_options(fn, name, "@workflow.update")
        if fn is None:
            return _UpdateFactory(UpdateDefinition, "@workflow.update", name)
        return define_message(UpdateDefinition, "@workflow.update", fn, name)

    # Of calls: out of the parameters of a SignalDefinition type checkers take no type for A1.
    @overload
    def signal_channel(self, signal: Callable[[A1, A2, A3], Any], /) -> ReceiveChannel[tuple[A1, A2, A3]]: ...
    @overload
    def signal_channel(self, signal: Callable[[A1, A2], Any], /) -> ReceiveChannel[tuple[A1, A2]]: ...
    @overload
    def signal_channel(self, signal: Callable[[A1], Any], /) -> ReceiveChannel[A1]: ...
    @overload
    def signal_channel(self, signal: Callable[[], Any], /) -> ReceiveChannel[None]: ...
    @overload
    def signal_channel(
        self, signal: SignalDefinition[Concatenate[Any, Any, Any, Any, ...]], /
    ) -> ReceiveChannel[tuple[Any, ...]]: ...
    @overload
    def signal_channel(self, signal: str, /, *, type: type[T]) -> ReceiveChannel[T]: ...
    @overload
    def signal_channel(self, signal: str, /, *, type: Any = ...) -> ReceiveChannel[Any]: ...
    def signal_channel(self, signal: Any, /, *, type: Any = Any) -> ReceiveChannel[Any]:  # noqa: A002 - pinned
        """A Trio receive channel of what a signal carries: its argument; of several arguments, a tuple; of none, None.

            async with workflow.signal_channel("items", type=str) as items:
                async for item in items: ...

        It begins with the signals that came before it was opened. Several channels of one signal share what comes.
        Signals that nobody has received when the run continues as new are the next run's.

        Args:
            signal: what ``@workflow.signal`` made, or the name it is sent by.
            type: with a name: what the value is rebuilt as; a tuple type for a signal with several arguments.

        Raises:
            RuntimeError: called outside of a workflow, or the signal has a handler.
        """
        run = running("signal_channel()")
        if isinstance(signal, str):
            return run.signal_channel(signal, _decoder_of_type(type))  # type: ignore[no-any-return]  # as documented
        if not isinstance(signal, SignalDefinition):
            raise TypeError(f"signal_channel takes what @workflow.signal made, or the name of a signal, not {signal!r}")
        if type is not Any:
            raise TypeError(f"signal {signal.name} says itself what it carries: leave out the type")
        return run.signal_channel(signal.name, _decoder_of(signal))  # type: ignore[no-any-return]  # as documented

    async def wait_until(self, predicate: Callable[[], T]) -> T:
        """Wait until `predicate()` is truthy, and give what it returned.

            await workflow.wait_until(lambda: stock >= quantity)
            stock -= quantity

        It holds when this returns. It is called again whenever something may have changed: after every step of a task
        of the run. It has to be a function of the workflow's state, quick, and without effects.

        Raises:
            RuntimeError: called outside of a workflow. TypeError: an ``async def`` was given.
            Exception: what the predicate raises.
        """
        if iscoroutinefunction(predicate):
            raise TypeError("wait_until takes a plain function that looks at the workflow's state, not an async one")
        value: T = await running("wait_until()").wait_until(predicate)
        return value

    def cancel_reason(self) -> str | None:
        """Why somebody wants the run to end (the text may be empty); None while nobody does.

        Raises:
            RuntimeError: called outside of a workflow.
        """
        return running("cancel_reason()").cancel_reason

    @overload
    def last_result(self, type: type[T], /) -> T | None: ...
    @overload
    def last_result(self, type: Any = ..., /) -> Any: ...
    def last_result(self, type: Any = Any, /) -> Any:  # noqa: A002 - the word of signal_channel
        """What the last run of this workflow id that completed has returned, rebuilt as `type`; None if there is none.

        Raises:
            RuntimeError: called outside of a workflow. PayloadError: it does not fit the type.
        """
        return running("last_result()").last_result(type)


def _decoder_of(signal: SignalDefinition[...]) -> Callable[[Payload], Any]:
    def decode(payload: Payload) -> Any:
        arguments = signal.decode(payload)
        if len(arguments) > 1:
            return arguments
        return arguments[0] if arguments else None

    return decode


def _decoder_of_type(hint: Any) -> Callable[[Payload], Any]:
    def decode(payload: Payload) -> Any:
        from durablefuture_trio.codec import decode_arguments, decode_value

        count = len(decode_value(payload, list[Any]))
        if count == 1:
            return decode_arguments(payload, (hint,))[0]
        if count == 0 and hint in (Any, None, type(None)):
            return None
        return decode_value(payload, tuple[Any, ...] if hint is Any else hint)

    return decode
