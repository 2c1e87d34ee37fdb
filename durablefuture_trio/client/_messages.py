"""What a signal, a query or an update of the client says: its name, its arguments, and the type of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from durablefuture_trio.authoring._messages import MessageDefinition
from durablefuture_trio.codec import decode_arguments, encode_arguments
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.errors import PayloadError
from durablefuture_trio.history.events import CarriedSignal

Kind = Literal["signal", "query", "update"]


class Message(msgspec.Struct, frozen=True):
    """A message to a run: the name of its handler, the encoded arguments, and what the answer is rebuilt as."""

    name: str
    arguments: Payload
    result_type: Any


def message_of(kind: Kind, ref: Any, args: Sequence[Any], result_type: Any = Any) -> Message:
    """The message that `ref` (made by ``@workflow.signal``, ``query`` or ``update``, or a name) and `args` mean.

    Raises:
        TypeError: `ref` is nothing of this kind, or the arguments do not fit its signature.
        PayloadError: an argument cannot be encoded, or rebuilt as its parameter's type, or they are too large.
    """
    if isinstance(ref, str):
        if not ref:
            raise TypeError(f"the name of a {kind} must not be empty")
        return Message(ref, encode_arguments(tuple(args)), result_type)
    if not isinstance(ref, MessageDefinition) or ref.kind != kind:
        raise TypeError(_wrong_kind(kind, ref))
    arguments = encode_arguments(ref.signature.bind(tuple(args), {}))
    hints = ref.parameter_hints
    try:
        decode_arguments(arguments, hints)
    except PayloadError as error:
        # Refused here: a handler that cannot read its arguments is of no use to anybody.
        names = ", ".join(ref.signature.names)
        raise PayloadError(
            f"the arguments do not fit {kind} {ref.name}({names}): {error.message}. Nothing was sent.", path=error.path
        ) from error
    return Message(ref.name, arguments, ref.result_hint if result_type is Any else result_type)


def _wrong_kind(kind: Kind, ref: object) -> str:
    if isinstance(ref, MessageDefinition):
        return f"{ref.name} is declared with @workflow.{ref.kind}: send it with {ref.kind}(), not with {kind}()"
    return (
        f"{ref!r} is no {kind}: give what @workflow.{kind} made of a function (or of a method, as MyWorkflow.method), "
        "or its name as a string"
    )


def first_signal(option: Any) -> CarriedSignal | None:
    """The option ``start_signal``: None, or a signal and its arguments.

    Raises:
        TypeError: it is something else. PayloadError: as `message_of`.
    """
    if option is None:
        return None
    if not isinstance(option, tuple) or len(option) != 2 or not isinstance(option[1], tuple | list):
        raise TypeError(
            f"start_signal must be a signal and a tuple of its arguments, e.g. (approve, ('Ann',)), not {option!r}"
        )
    message = message_of("signal", option[0], option[1])
    return CarriedSignal(message.name, message.arguments)
