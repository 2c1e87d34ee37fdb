"""What each command of ``durablefuture`` does: asks the client, and says what is to be printed."""

from __future__ import annotations

import argparse
import heapq
import json
import math
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import trio

from durablefuture_trio._ids import check_workflow_id, new_id
from durablefuture_trio.cli._client import ExitCode, UsageError, json_or_text
from durablefuture_trio.cli._table import (
    EventWords,
    one_line,
    payload_value,
    plain,
    table,
    time_text,
    value_text,
)
from durablefuture_trio.client import Client, StartOptions, WorkflowDescription, WorkflowHandle, connect
from durablefuture_trio.errors import (
    ApplicationError,
    UpdateFailedError,
    UpdateRejectedError,
    WorkflowCancelledError,
    WorkflowError,
    WorkflowFailedError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durablefuture_trio.protocol.projection import Status


class Output(msgspec.Struct, frozen=True):
    """What a command came to: lines for people, the same as data, and the exit code."""

    lines: list[str]
    data: Any
    code: ExitCode = ExitCode.OK


def run_command(options: argparse.Namespace) -> int:
    """Run the command and print what it came to; returns the exit code.

    Raises:
        UsageError, DurableFutureError: see there. BrokenPipeError: nobody reads the output. KeyboardInterrupt.
    """
    _check(options)
    output = trio.run(_interruptible, options)
    if output is None:
        raise KeyboardInterrupt
    # Printed when the connection is closed: a reader that is slow or gone must not disturb it.
    if options.json:
        print(_dump(output.data))
    else:
        for line in output.lines:
            print(line)
    return output.code


async def _interruptible(options: argparse.Namespace) -> Output | None:
    """The output of the command; None if it was interrupted. A KeyboardInterrupt would come in some task's group."""
    token = trio.lowlevel.current_trio_token()
    with trio.CancelScope() as scope:
        before = signal.signal(signal.SIGINT, lambda *_: token.run_sync_soon(scope.cancel))
        try:
            async with connect(options.url, config=options.config, namespace=options.namespace) as client:
                return await _COMMANDS[options.command](client, options)
        finally:
            signal.signal(signal.SIGINT, before)
    return None


def _check(options: argparse.Namespace) -> None:
    """Refuse, before anybody is asked, what argparse cannot know to be wrong."""
    try:
        if (workflow_id := getattr(options, "id", None)) is not None:
            check_workflow_id(workflow_id)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if getattr(options, "workflow", None) == "":
        raise UsageError("the name of the workflow is empty")
    if getattr(options, "name", None) == "":
        raise UsageError(f"the name of the {options.command} is empty")
    timeout, delay = getattr(options, "execution_timeout", None), getattr(options, "delay", None)
    if timeout is not None and not timeout > 0:
        raise UsageError("--execution-timeout must be above 0 seconds")
    if delay is not None and not 0 <= delay < math.inf:
        raise UsageError("--delay must be 0 seconds or more")
    if getattr(options, "signal_arg", None) and not options.signal:
        raise UsageError("--signal-arg needs the name of a --signal")


# --- starting and waiting ---------------------------------------------------------------------------------------------


async def _start(client: Client, options: argparse.Namespace) -> Output:
    handle = await client.start(options.workflow, *_arguments(options), **_start_options(options))
    _say(f"started run {handle.run_id}")
    return Output([handle.id], {"workflow_id": handle.id, "run_id": handle.run_id})


async def _run(client: Client, options: argparse.Namespace) -> Output:
    options.id = workflow_id = options.id if options.id is not None else new_id()
    start_options = _start_options(options)
    _say(f"running workflow {workflow_id}")
    return await _outcome(
        workflow_id, client.run(options.workflow, *_arguments(options), result_type=Any, **start_options)
    )


async def _result(client: Client, options: argparse.Namespace) -> Output:
    return await _outcome(options.id, _handle(client, options).result())


async def _outcome(workflow_id: str, result: Awaitable[Any]) -> Output:
    """The end of a run. That it failed is data too; that it is not known, or may not be started, is not."""
    try:
        value = await result
    except WorkflowError as error:
        status = _ENDINGS.get(type(error))
        if status is None:
            raise
        _say(str(error))
        data = {"workflow_id": workflow_id, "run_id": error.run_id, "status": status, "error": _error_data(error)}
        return Output([], data, ExitCode.FAILED)
    return Output([_dump(value)], {"workflow_id": workflow_id, "status": "completed", "result": value})


_ENDINGS: dict[type[WorkflowError], Status] = {
    WorkflowFailedError: "failed",
    WorkflowCancelledError: "cancelled",
    WorkflowTerminatedError: "terminated",
    WorkflowTimedOutError: "timed_out",
}


def _error_data(error: BaseException | None) -> Any:
    if error is None:
        return None
    if isinstance(error, WorkflowFailedError):
        return _error_data(error.cause)
    kind = error.type if isinstance(error, ApplicationError) else type(error).__name__
    data: dict[str, Any] = {"type": kind, "message": str(error)}
    cause = getattr(error, "cause", None) or error.__cause__
    if isinstance(cause, BaseException):
        data["cause"] = _error_data(cause)
    return data


def _arguments(options: argparse.Namespace) -> list[Any]:
    return [json_or_text(argument) for argument in options.arguments]


def _start_options(options: argparse.Namespace) -> StartOptions:
    start_options: StartOptions = {
        "id": options.id,
        "id_conflict_policy": options.id_conflict_policy,
        "id_reuse_policy": options.id_reuse_policy,
        "execution_timeout": options.execution_timeout,
        "start_delay": options.delay,
        "request_id": options.request_id,
    }
    if options.memo is not None:
        start_options["memo"] = json_or_text(options.memo)
    if options.signal is not None:
        start_options["start_signal"] = (options.signal, [json_or_text(text) for text in options.signal_arg])
    return start_options


def _handle(client: Client, options: argparse.Namespace) -> WorkflowHandle[Any]:
    return client.handle(options.id, run_id=options.run_id)


# --- looking ----------------------------------------------------------------------------------------------------------


async def _list(client: Client, options: argparse.Namespace) -> Output:
    found = [description async for description in client.list(status=options.status, workflow=options.workflow)]
    shown = heapq.nlargest(options.limit or len(found), found, key=lambda item: item.started_at)[::-1]
    if len(shown) < len(found):
        _say(f"{len(shown)} of {len(found)} workflows; see --limit")
    header = ("ID", "WORKFLOW", "STATUS", "STARTED (UTC)", "CLOSED (UTC)", "NOTE")
    rows = [
        (
            one_line(item.workflow_id),
            one_line(item.workflow),
            item.status,
            time_text(item.started_at),
            time_text(item.closed_at),
            one_line(item.blocked),
        )
        for item in shown
    ]
    return Output(table(header, rows), [_listed_data(item) for item in shown])


def _listed_data(item: WorkflowDescription) -> dict[str, Any]:
    data = plain(item)
    return {name: data[name] for name in _LISTED}


_LISTED = ("workflow_id", "run_id", "workflow", "status", "started_at", "closed_at", "blocked", "memo")


async def _show(client: Client, options: argparse.Namespace) -> Output:
    handle = _handle(client, options)
    description = await handle.describe()
    data = plain(description)
    rows = [
        ("id", description.workflow_id),
        ("run", description.run_id),
        ("workflow", description.workflow),
        ("status", description.status),
        ("started", time_text(description.started_at)),
        ("closed", time_text(description.closed_at)),
        ("deadline", time_text(description.execution_deadline)),
        ("events", str(description.history_length)),
    ]
    rows += _further_rows(description)
    if description.closed_at is not None and not description.continued_in:
        run = client.handle(options.id, run_id=description.run_id)
        try:
            data["result"] = await run.result()
            rows.append(("result", _dump(data["result"])))
        except WorkflowError as error:
            data["error"] = _error_data(error)
            rows.append(("error", one_line(str(error))))
    rows += _pending_rows(description)
    width = max(len(name) for name, _ in rows)
    further = "\n" + " " * (width + 2)
    return Output([f"{name.ljust(width)}  {words.replace(chr(10), further)}" for name, words in rows], data)


def _further_rows(description: WorkflowDescription) -> Iterator[tuple[str, str]]:
    """What not every run has."""
    if description.memo is not None:
        yield "memo", value_text(payload_value(description.memo))
    if description.blocked:
        yield "blocked", description.blocked
    if description.not_before is not None:
        yield "begins", time_text(description.not_before)
    if description.attempt > 1:
        yield "attempt", str(description.attempt)
    if description.is_cancelled:
        yield "cancelled", one_line(description.cancel_reason) or "no reason was given"
    if description.parent_workflow_id:
        yield "parent", f"{one_line(description.parent_workflow_id)} run {description.parent_run_id}"
    if description.continued_from:
        yield "continues", f"run {description.continued_from}"
    if description.continued_in:
        yield "goes on in", f"run {description.continued_in}"


def _pending_rows(description: WorkflowDescription) -> Iterator[tuple[str, str]]:
    for pending in description.pending_activities:
        words = f"#{pending.activity_id} {pending.activity} attempt {pending.attempt} {pending.phase}"
        if pending.retry_at is not None:
            words += f", next attempt at {time_text(pending.retry_at)}"
        if pending.last_failure:
            words += f", last failure {pending.last_failure_reason}: {one_line(pending.last_failure)}"
        yield "pending", words
    for child in description.pending_children:
        run = f" run {child.run_id}" if child.run_id else ""
        yield "child", f"#{child.call} {child.workflow} {one_line(child.workflow_id)}{run} {child.phase}"
    for update in description.pending_updates:
        accepted = time_text(update.accepted_at)
        yield "update", f"{one_line(update.update)} {one_line(update.update_id)} accepted {accepted}"


async def _history(client: Client, options: argparse.Namespace) -> Output:
    events = await _handle(client, options).history()
    words = EventWords()
    rows, data = [], []
    for item in events:
        detail = words.detail(item.event)
        rows.append((str(item.id), time_text(item.at), item.type, detail))
        record = plain(item.event)
        data.append({"seq": record.pop("id"), "at": record.pop("at"), "event": item.type, "detail": detail, **record})
    return Output(table(("SEQ", "TIME (UTC)", "EVENT", "DETAIL"), rows), data)


# --- talking to a workflow --------------------------------------------------------------------------------------------


async def _signal(client: Client, options: argparse.Namespace) -> Output:
    handle = _handle(client, options)
    await handle.signal(options.name, *_arguments(options), request_id=options.request_id)
    _say(f"signal {options.name} is recorded")
    return Output([], {"workflow_id": options.id, "signal": options.name, "delivered": True})


async def _query(client: Client, options: argparse.Namespace) -> Output:
    value = await _handle(client, options).query(options.name, *_arguments(options), result_type=Any)
    return Output([_dump(value)], {"workflow_id": options.id, "query": options.name, "result": value})


async def _update(client: Client, options: argparse.Namespace) -> Output:
    update_id = options.update_id if options.update_id is not None else new_id()
    data: dict[str, Any] = {"workflow_id": options.id, "update": options.name, "update_id": update_id}
    handle = _handle(client, options)
    try:
        value = await handle.update(options.name, *_arguments(options), update_id=update_id, result_type=Any)
    except (UpdateRejectedError, UpdateFailedError) as error:
        _say(str(error))
        status = "rejected" if isinstance(error, UpdateRejectedError) else "failed"
        return Output([], {**data, "status": status, "error": _error_data(error.cause or error)}, ExitCode.FAILED)
    return Output([_dump(value)], {**data, "status": "completed", "result": value})


async def _cancel(client: Client, options: argparse.Namespace) -> Output:
    await _handle(client, options).cancel(options.reason, request_id=options.request_id)
    _say(f"asked workflow {options.id} to end")
    return Output([], {"workflow_id": options.id, "cancel_requested": True})


async def _terminate(client: Client, options: argparse.Namespace) -> Output:
    await _handle(client, options).terminate(options.reason)
    _say(f"terminated workflow {options.id}")
    return Output([], {"workflow_id": options.id, "terminated": True})


async def _status(client: Client, options: argparse.Namespace) -> Output:
    status = await client.status()
    now = time.time()

    def age(at: float | None) -> str:
        return "-" if at is None else f"{max(now - at, 0.0):.1f} s ago"

    members = ", ".join(f"{member.name} (seen {age(member.seen_at)})" for member in status.members)
    lines = [
        f"namespace {status.namespace} on nats-server {status.server_version}",
        f"supervisors: {members or 'none'}",
        f"tasks queued: {status.tasks}, dead letters: {status.dead_letters}",
        "",
    ]
    rows = [
        (str(shard.shard), shard.owner or "nobody", str(shard.epoch), age(shard.renewed_at), str(shard.inbox))
        for shard in status.shards
    ]
    lines += table(("SHARD", "OWNER", "EPOCH", "RENEWED", "INBOX"), rows)
    return Output(lines, plain(status))


_COMMANDS: dict[str, Callable[[Client, argparse.Namespace], Awaitable[Output]]] = {
    "start": _start,
    "run": _run,
    "result": _result,
    "list": _list,
    "show": _show,
    "history": _history,
    "signal": _signal,
    "query": _query,
    "update": _update,
    "cancel": _cancel,
    "terminate": _terminate,
    "status": _status,
}


# --- printing ---------------------------------------------------------------------------------------------------------


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)


def _say(text: str) -> None:
    print(f"durablefuture: {text}", file=sys.stderr)
