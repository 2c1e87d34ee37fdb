"""User values on their way into and out of the history. Used by clients and child processes only.

Values are plain JSON, rebuilt from type hints: what a function's annotations say is what it gets. The few values that
JSON cannot hold (NaN, integers beyond 64 bits, keys that are no strings, lone surrogates) travel in a second, tagged
encoding, chosen by itself and lossless too.

What is no JSON, no hint can be given for and no class is known for is a `PayloadError` that names the place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from durablefuture_trio.codec._hints import annotations_to_carry, carry_annotations
    from durablefuture_trio.codec.failures import exception_of, failure_of, single_leaf
    from durablefuture_trio.codec.values import (
        check_hint,
        decode_arguments,
        decode_value,
        encode_arguments,
        encode_value,
    )

__all__ = [
    "annotations_to_carry",
    "carry_annotations",
    "check_hint",
    "decode_arguments",
    "decode_value",
    "encode_arguments",
    "encode_value",
    "exception_of",
    "failure_of",
    "single_leaf",
]

_HOMES = {
    "annotations_to_carry": "_hints",
    "carry_annotations": "_hints",
    "exception_of": "failures",
    "failure_of": "failures",
    "single_leaf": "failures",
}


def __getattr__(name: str) -> Any:
    # Lazy: a supervisor imports `codec.payload` only, and must not pay for (or be able to use) the rest.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'values')}"), name)
    globals()[name] = value
    return value
