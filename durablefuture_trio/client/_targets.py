"""Which workflow a call of the client means."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar, TypeVarTuple

import msgspec

from durablefuture_trio.authoring import Definition, definition_of
from durablefuture_trio.codec import decode_arguments, encode_arguments
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.errors import PayloadError

R_co = TypeVar("R_co", covariant=True)
Ts = TypeVarTuple("Ts")


class HasRun(Protocol[*Ts, R_co]):
    """An instance of a class decorated with ``@workflow``."""

    def run(self, *args: *Ts) -> Awaitable[R_co]: ...


class Target(msgspec.Struct, frozen=True):
    """The workflow to start: its name, the encoded arguments, and what its result is rebuilt as."""

    name: str
    arguments: Payload
    result_type: Any


def target_of(wf: Any, args: tuple[Any, ...], result_type: Any) -> Target:
    """The target of a start.

    Raises:
        TypeError: `wf` is no workflow, or the arguments do not fit its signature.
        PayloadError: an argument cannot be encoded, or rebuilt as its parameter's type, or they are too large.
    """
    if isinstance(wf, str):
        if not wf:
            raise TypeError("the name of a workflow must not be empty")
        return Target(wf, encode_arguments(args), result_type)
    definition = _workflow_of(wf)
    arguments = encode_arguments(definition.bind_arguments(args))
    _check_arguments(definition, arguments)
    return Target(definition.name, arguments, definition.result_hint if result_type is Any else result_type)


def _check_arguments(definition: Definition, arguments: Payload) -> None:
    """Refuse here what would block the run for ever: once stored, arguments cannot be mended."""
    try:
        decode_arguments(arguments, definition.parameter_hints)
    except PayloadError as error:
        names = ", ".join(definition.signature.names)
        raise PayloadError(
            f"the arguments do not fit workflow {definition.name}({names}): {error.message}. Nothing was sent.",
            path=error.path,
        ) from error


def result_type_of(wf: Any, result_type: Any) -> Any:
    """What the result of `wf` (None or a name: unknown) is rebuilt as.

    Raises:
        TypeError: `wf` is no workflow.
    """
    if wf is None or isinstance(wf, str) or result_type is not Any:
        return result_type
    return _workflow_of(wf).result_hint


def _workflow_of(wf: Any) -> Definition:
    definition = definition_of(wf)
    if definition is None:
        raise TypeError(f"{wf!r} is no workflow: decorate it with @workflow, or give the name of one as a string")
    if definition.kind != "workflow":
        raise TypeError(f"{wf!r} is an activity, not a workflow: activities are called from workflow code")
    return definition
