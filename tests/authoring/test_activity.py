from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Awaitable, Iterator
from contextvars import Token
from dataclasses import dataclass
from datetime import timedelta
from functools import partial, wraps
from random import Random
from typing import Any
from uuid import UUID

import pytest
import trio

from durablefuture_trio import RetryPolicy, activity, activity_options
from durablefuture_trio.authoring._activity_context import ActivityInfo, current_activity
from durablefuture_trio.authoring._options import configure_options
from durablefuture_trio.authoring._runtime import WorkflowInfo, WorkflowRuntime, current_run
from durablefuture_trio.codec import decode_arguments, decode_value, encode_arguments, encode_value
from durablefuture_trio.history.options import ActivityOptionsRecord


@dataclass
class Charge:
    id: str


@activity
async def charge(customer: str, amount: float = 10.0) -> Charge:
    """Take the money."""
    return Charge(f"{customer}-{amount}")


@activity(name="ship-it", start_to_close_timeout=30)
def ship(charge: Charge) -> str:
    return f"{charge.id} in {threading.current_thread().name}"


class RecordingRun(WorkflowRuntime):
    """A run that notes the calls made in it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], ActivityOptionsRecord, Any]] = []

    @property
    def info(self) -> WorkflowInfo:
        raise NotImplementedError

    def now(self) -> float:
        raise NotImplementedError

    def random(self) -> Random:
        raise NotImplementedError

    def uuid4(self) -> UUID:
        raise NotImplementedError

    def replaying(self) -> bool:
        return False

    def call_activity(
        self, name: str, arguments: tuple[Any, ...], options: ActivityOptionsRecord, result_type: Any
    ) -> Awaitable[Any]:
        self.calls.append((name, arguments, options, result_type))
        return self._answer(name)

    async def _answer(self, name: str) -> str:
        await trio.lowlevel.checkpoint()
        return f"result of {name}"


@pytest.fixture
def run() -> Iterator[RecordingRun]:
    recording = RecordingRun()
    token: Token[WorkflowRuntime | None] = current_run.set(recording)
    yield recording
    current_run.reset(token)


@pytest.fixture
def configured() -> Iterator[None]:
    configure_options({"task_queue": "from-config", "priority": 5})
    yield
    configure_options({})


async def test_outside_of_a_workflow_an_async_activity_just_runs() -> None:
    assert await charge("Bob", 5) == Charge("Bob-5")
    assert await charge("Bob") == Charge("Bob-10.0")


async def test_outside_of_a_workflow_a_plain_function_runs_in_a_thread() -> None:
    here = threading.current_thread().name
    assert not (await ship(Charge("a"))).endswith(here)


async def test_an_activity_can_be_started_in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(charge, "Bob")
        nursery.start_soon(ship, Charge("a"))


async def test_a_call_gives_a_real_coroutine() -> None:
    call = charge("Bob")
    assert inspect.iscoroutine(call)
    assert await call == Charge("Bob-10.0")


def test_a_definition_looks_like_its_function() -> None:
    assert (charge.name, ship.name) == ("charge", "ship-it")
    assert charge.__doc__ == "Take the money."
    assert charge.__name__ == "charge"
    assert list(inspect.signature(charge).parameters) == ["customer", "amount"]
    assert inspect.iscoroutinefunction(charge.fn)
    assert charge.parameter_hints == (str, float)
    assert charge.result_hint is Charge
    assert "charge" in repr(charge)


async def test_in_a_workflow_a_call_is_scheduled_with_arguments_by_position(run: RecordingRun) -> None:
    assert await charge(amount=3, customer="Bob") == "result of charge"  # type: ignore[comparison-overlap]
    assert await ship(Charge("a")) == "result of ship-it"
    (first, second) = run.calls
    assert first[:2] == ("charge", ("Bob", 3))
    assert first[3] is Charge
    assert second[:2] == ("ship-it", (Charge("a"),))
    assert second[2].start_to_close_timeout == 30


async def test_in_a_workflow_nothing_is_scheduled_before_the_call_is_awaited(run: RecordingRun) -> None:
    call = charge("Bob")
    assert not run.calls
    await call
    assert len(run.calls) == 1


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "activity charge is missing argument 'customer'"),
        (("a", 1, 2), {}, "takes 1 to 2 arguments (customer, amount), not 3"),
        (("a",), {"customer": "b"}, "got argument 'customer' twice"),
        (("a",), {"colour": 1}, "has no parameter 'colour'"),
        ((), {"amount": 1}, "missing argument 'customer'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_the_call(
    args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError) as caught:
        charge(*args, **kwargs)
    assert message in str(caught.value)


def test_positional_only_parameters_cannot_be_named() -> None:
    @activity
    async def first(number: int, /, other: int = 1) -> int:
        return number

    assert first.bind_arguments((5,), {"other": 2}) == (5, 2)
    with pytest.raises(TypeError, match="missing argument 'number'"):
        first.bind_arguments((), {"number": 5})


async def test_neither_timeout_given_means_ten_minutes(run: RecordingRun) -> None:
    await charge("Bob")
    await charge.with_options(schedule_to_close_timeout=5)("Bob")
    assert run.calls[0][2] == ActivityOptionsRecord(start_to_close_timeout=600.0)
    assert run.calls[1][2] == ActivityOptionsRecord(schedule_to_close_timeout=5.0)


async def test_options_are_decided_field_by_field_call_scopes_decorator_configuration_default(
    run: RecordingRun, configured: None
) -> None:
    @activity(start_to_close_timeout=1, heartbeat_timeout=1, fairness_key="decorator")
    async def act() -> None: ...

    with activity_options(start_to_close_timeout=2, heartbeat_timeout=2, schedule_to_close_timeout=2):
        with activity_options(start_to_close_timeout=3, heartbeat_timeout=3):
            await act.with_options(start_to_close_timeout=4)()
        await act()
    await act()
    inner, outer, plain = (call[2] for call in run.calls)
    assert inner == ActivityOptionsRecord(
        start_to_close_timeout=4.0,
        heartbeat_timeout=3.0,
        schedule_to_close_timeout=2.0,
        fairness_key="decorator",
        task_queue="from-config",
        priority=5,
    )
    assert outer == ActivityOptionsRecord(
        start_to_close_timeout=2.0,
        heartbeat_timeout=2.0,
        schedule_to_close_timeout=2.0,
        fairness_key="decorator",
        task_queue="from-config",
        priority=5,
    )
    assert plain == ActivityOptionsRecord(
        start_to_close_timeout=1.0,
        heartbeat_timeout=1.0,
        fairness_key="decorator",
        task_queue="from-config",
        priority=5,
    )


async def test_a_change_of_the_configuration_reaches_activities_that_were_called_before(run: RecordingRun) -> None:
    await charge("Bob")
    configure_options({"priority": 9})
    await charge("Bob")
    configure_options({})
    await charge("Bob")
    assert [call[2].priority for call in run.calls] == [0, 9, 0]


async def test_options_of_a_scope_reach_tasks_started_in_it_and_no_others(run: RecordingRun) -> None:
    async def later() -> None:
        await charge("inside")

    async with trio.open_nursery() as nursery:
        with activity_options(task_queue="gpu"):
            nursery.start_soon(later)
            nursery.start_soon(charge, "inside")
        nursery.start_soon(charge, "outside")
    assert {call[1][0]: call[2].task_queue for call in run.calls} == {"inside": "gpu", "outside": "default"}


async def test_with_options_is_a_copy_and_leaves_the_original_alone(run: RecordingRun) -> None:
    fast = charge.with_options(start_to_close_timeout=timedelta(seconds=1.5), task_queue="fast")
    faster = fast.with_options(start_to_close_timeout=1)
    for one in (charge, fast, faster):
        await one("Bob")
    records = [call[2] for call in run.calls]
    assert [record.start_to_close_timeout for record in records] == [600.0, 1.5, 1.0]
    assert [record.task_queue for record in records] == ["default", "fast", "fast"]
    assert fast.fn is charge.fn
    assert fast.options == {"start_to_close_timeout": 1.5, "task_queue": "fast"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"timeout": 5}, TypeError, "unknown option 'timeout'; the options are start_to_close_timeout"),
        ({"start_to_close_timeout": "5"}, TypeError, "start_to_close_timeout must be seconds or a timedelta, not '5'"),
        ({"start_to_close_timeout": True}, TypeError, "must be seconds or a timedelta"),
        ({"start_to_close_timeout": 0}, ValueError, "must be above 0 seconds"),
        ({"heartbeat_timeout": timedelta(-1)}, ValueError, "must be above 0 seconds"),
        ({"schedule_to_close_timeout": float("inf")}, ValueError, "finite"),
        ({"retry_policy": {"maximum_attempts": 3}}, TypeError, "retry_policy must be a RetryPolicy"),
        ({"task_queue": ""}, ValueError, "task_queue must not be empty"),
        ({"task_queue": None}, TypeError, "task_queue must be the name of a queue"),
        ({"priority": 1.5}, TypeError, "priority must be an integer"),
        ({"priority": True}, TypeError, "priority must be an integer"),
        ({"abandon_on_cancel": 1}, TypeError, "abandon_on_cancel must be True or False"),
        ({"isolation": "thread"}, ValueError, "isolation must be 'shared' or 'process'"),
    ],
)
def test_wrong_options_are_refused_where_they_are_written(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    for use in (partial(activity, **options), partial(charge.with_options, **options)):
        with pytest.raises(error) as caught:
            use()
        assert message in str(caught.value)
    with pytest.raises(error), activity_options(**options):
        pass


def test_a_timeout_of_none_takes_the_limit_of_an_outer_scope_away() -> None:
    with activity_options(heartbeat_timeout=5), activity_options(heartbeat_timeout=None):
        assert charge.call_record().heartbeat_timeout is None


def test_a_retry_policy_is_taken_as_it_is() -> None:
    policy = RetryPolicy(maximum_attempts=3)
    assert charge.with_options(retry_policy=policy).call_record().retry_policy is policy


class Owner:
    def method(self) -> None: ...

    @staticmethod
    def static() -> None: ...


def undecorated(*numbers: int) -> None: ...


def keyword_only(*, number: int) -> None: ...


def with_keywords(**numbers: int) -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda: None, "lambda, which has no name to find it by: write a def"),
        (generator, "is a generator (it has a yield): collect the values and return them"),
        (async_generator, "is a generator"),
        (Owner.method, "does not go onto the method Owner.method: move the function to module level"),
        (Owner().method, "goes onto a function written with def or async def"),
        (vars(Owner)["static"], "does not go onto a staticmethod: move the function Owner.static out of its class"),
        (Owner, "does not go onto the class Owner: write a function"),
        (partial(print, 1), "goes onto a function written with def or async def"),
        (print, "goes onto a function written with def or async def"),
        (5, "goes onto a function written with def or async def"),
        (undecorated, "*numbers cannot be recorded"),
        (with_keywords, "**numbers cannot be recorded"),
        (keyword_only, "parameter 'number' is keyword-only"),
    ],
)
def test_what_cannot_be_an_activity_is_refused_with_what_to_do(fn: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        activity(fn)
    assert message in str(caught.value)
    with pytest.raises(TypeError):
        activity(priority=1)(fn)


def test_a_name_must_be_a_non_empty_string() -> None:
    for name in ("", 5):
        with pytest.raises(TypeError, match="name must be a non-empty string"):
            activity(name=name)  # type: ignore[call-overload]


def test_function_and_options_together_are_refused() -> None:
    with pytest.raises(TypeError, match="either the function or options"):
        activity(charge.fn, priority=1)  # type: ignore[call-overload]


def test_a_decorated_function_keeps_the_signature_of_the_one_inside() -> None:
    def logged(fn: Any) -> Any:
        @wraps(fn)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await fn(*args, **kwargs)

        return wrapper

    @activity
    @logged
    async def act(number: int) -> Charge: ...

    assert act.parameter_hints == (int,)
    assert act.bind_arguments((), {"number": 5}) == (5,)


def test_hints_of_a_function_in_a_function_may_name_its_neighbours() -> None:
    @dataclass
    class Local:
        number: int

    @activity
    async def act(value: Local, more: list[Local] | None = None) -> dict[str, Local]: ...

    assert act.parameter_hints == (Local, list[Local] | None)
    assert act.result_hint == dict[str, Local]
    act.check_hints()


def test_classes_in_a_function_may_refer_to_each_other() -> None:
    @dataclass
    class Part:
        number: int

    @dataclass
    class Whole:
        parts: list[Part]

    @activity
    async def act(value: Whole) -> Whole: ...

    whole = Whole([Part(1)])
    assert decode_arguments(encode_arguments((whole,)), act.parameter_hints) == (whole,)
    assert decode_value(encode_value(whole), act.result_hint) == whole


def test_hints_that_name_what_does_not_exist_are_refused_with_what_to_do() -> None:
    @activity
    async def act(value: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821 - what the test is about
        ...

    with pytest.raises(TypeError, match=r"'Missing' is not defined.*define what they name at module level"):
        act.parameter_hints  # noqa: B018 - resolved when looked at


def test_hints_whose_values_cannot_be_rebuilt_are_refused_with_the_parameter() -> None:
    @activity
    async def act(number: int, connection: complex) -> None: ...

    with pytest.raises(TypeError, match=r"activity act, parameter 'connection': .*complex cannot be rebuilt"):
        act.check_hints()


def test_info_is_known_only_while_a_worker_runs_the_activity() -> None:
    assert not activity.in_activity()
    with pytest.raises(RuntimeError, match="only while a worker runs the activity"):
        activity.info()
    info = ActivityInfo(activity="a", workflow_id="w", run_id="r", activity_id=3, attempt=2, deadline=0.0)
    token = current_activity.set(info)
    try:
        assert activity.info() is info
        assert activity.in_activity()
        assert info.idempotency_key == "r/3"
        assert info.deadline_at is not None
        assert info.deadline_at.year == 1970
    finally:
        current_activity.reset(token)


def test_the_logger_adds_the_ids_of_the_attempt(caplog: pytest.LogCaptureFixture) -> None:
    info = ActivityInfo(activity="a", workflow_id="w", run_id="r", activity_id=3, attempt=2)
    token = current_activity.set(info)
    try:
        activity.logger.warning("hello", extra={"mine": 1})
    finally:
        current_activity.reset(token)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert (vars(record)["activity_id"], vars(record)["attempt"], vars(record)["mine"]) == (3, 2, 1)
