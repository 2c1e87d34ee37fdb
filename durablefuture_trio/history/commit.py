"""The wire format of a commit: one JetStream message, one decision about one run."""

from __future__ import annotations

import msgspec

from durablefuture_trio.errors import HistoryError
from durablefuture_trio.history.events import Event, RequestRecord, WorkflowStarted

SCHEMA_VERSION = 1
"""Raised when an older program could misread a commit. Readers refuse what is newer than they are."""


class Commit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A list of events with what a later owner needs to go on from here.

    Attributes:
        schema: `SCHEMA_VERSION` of the writer.
        run_id: the run the events belong to.
        commit_id: unique to this commit; decides after an unknown outcome whose commit holds the number.
        first_n: number of the run's first commit.
        finished: every stimulus in the history so far has been activated and every command recorded.
        consumed: highest inbox sequence consumed for this workflow id, applied or refused; carried across runs.
        wake_at: the sandbox's next deadline after its last activation, in Unix seconds.
        code_hash: the code that produced the commands.
        events: in order of their ids. When one commit ends a run and starts the next of the same workflow id, the
            closing events of the earlier run come first; `own_events` leaves them out.
        refused: requests refused since the last commit (no event stands for them).
        owes: messages to other workflows that earlier commits called for were not all stored when this was made.
    """

    schema: int = SCHEMA_VERSION
    run_id: str
    commit_id: str
    first_n: int
    finished: bool
    consumed: int
    events: tuple[Event, ...]
    wake_at: float | None = None
    code_hash: str = ""
    refused: tuple[RequestRecord, ...] = ()
    owes: bool = False


def own_events(commit: Commit) -> tuple[Event, ...]:
    """The events of the run the commit is filed under, without the closing events of the run before."""
    events = commit.events
    for index in range(1, len(events)):
        if isinstance(events[index], WorkflowStarted):
            return events[index:]
    return events


def closing_events(commit: Commit) -> tuple[Event, ...]:
    """The events with which the commit closes the run before its own; usually none."""
    return commit.events[: len(commit.events) - len(own_events(commit))]


class _Version(msgspec.Struct):
    schema: int = SCHEMA_VERSION


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Commit)
_version_decoder = msgspec.msgpack.Decoder(_Version)


def encode_commit(commit: Commit) -> bytes:
    """The bytes of a commit, MessagePack with named fields."""
    return _encoder.encode(commit)


def decode_commit(body: bytes, *, subject: str = "", sequence: int = 0) -> Commit:
    """Read a commit.

    Raises:
        HistoryError: the bytes are no commit, or were written by a newer schema; `subject` and `sequence` are named.
    """
    try:
        commit = _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError) as error:
        try:
            schema = _version_decoder.decode(body).schema
        except (msgspec.MsgspecError, ValueError):
            schema = SCHEMA_VERSION
        if schema > SCHEMA_VERSION:
            raise _newer(schema, subject, sequence) from None
        raise HistoryError(
            f"history message {subject or '?'} (sequence {sequence}) cannot be read: {error}. "
            "The run waits: restore the message from a backup, or delete it from the stream if it does not belong "
            "there.",
            subject=subject,
            sequence=sequence,
        ) from error
    if commit.schema > SCHEMA_VERSION:
        raise _newer(commit.schema, subject, sequence)
    return commit


def _newer(schema: int, subject: str, sequence: int) -> HistoryError:
    return HistoryError(
        f"history message {subject or '?'} (sequence {sequence}) has schema {schema}, this program knows up to "
        f"{SCHEMA_VERSION}: run a newer durablefuture-trio.",
        subject=subject,
        sequence=sequence,
    )
