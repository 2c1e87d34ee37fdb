from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest
import trio

from durablefuture_trio.codec import exception_of, failure_of
from durablefuture_trio.codec.failures import MAX_CHAIN, MAX_MEMBERS, MAX_MESSAGE_CHARS, MAX_TRACEBACK_CHARS
from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.errors import (
    ActivityError,
    ApplicationError,
    ConfigError,
    PayloadError,
    WorkflowFailedError,
    WorkflowTimedOutError,
)


class CardDeclined(ValueError):
    pass


def raised(exc: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise exc from cause
    except BaseException as caught:  # whatever it is, it is the value wanted
        return caught


def through_the_wire(failure: Failure) -> Failure:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(failure), type=Failure)


def rebuilt(exc: BaseException) -> Any:
    return exception_of(through_the_wire(failure_of(exc)))


def test_a_failure_has_type_message_bases_and_the_lines_that_raised() -> None:
    failure = failure_of(raised(CardDeclined("no money")))
    assert failure.type == "CardDeclined"
    assert failure.message == "no money"
    assert failure.mro == ("CardDeclined", "ValueError", "Exception", "BaseException")
    assert "raise exc from cause" in failure.traceback
    assert __file__ in failure.traceback
    assert not failure.non_retryable


def test_an_exception_comes_back_as_an_application_error_of_its_type() -> None:
    error = rebuilt(raised(CardDeclined("no money")))
    assert type(error) is ApplicationError
    assert (error.type, error.message, str(error)) == ("CardDeclined", "no money", "no money")
    assert "raise exc from cause" in error.traceback_text
    assert error.__cause__ is None


def test_the_frames_of_the_machinery_that_called_user_code_are_left_out() -> None:
    def user_code() -> None:
        raise ValueError("x")

    async def main() -> None:
        await trio.to_thread.run_sync(user_code)

    with pytest.raises(ValueError, match="x") as caught:
        trio.run(main)
    frames = [line for line in failure_of(caught.value).traceback.splitlines() if line.startswith("  File")]
    assert __file__ in frames[0]
    assert "in user_code" in frames[-1]


def test_causes_come_back_as_causes() -> None:
    error = rebuilt(raised(CardDeclined("outer"), raised(KeyError("inner"))))
    assert error.__cause__.type == "KeyError"
    assert error.__cause__.message == "'inner'"


def test_the_context_is_a_cause_unless_it_is_suppressed() -> None:
    def fail(suppressed: bool) -> None:
        try:
            raise KeyError("first")
        except KeyError:
            if suppressed:
                raise ValueError("second") from None
            raise ValueError("second")  # noqa: B904 - what the test is about

    with pytest.raises(ValueError, match="second") as plain:
        fail(suppressed=False)
    with pytest.raises(ValueError, match="second") as suppressed:
        fail(suppressed=True)
    assert rebuilt(plain.value).__cause__.type == "KeyError"
    assert rebuilt(suppressed.value).__cause__ is None


def test_an_application_error_keeps_what_its_raiser_said() -> None:
    original = ApplicationError("later", type="Busy", details=["a", {"b": 1}], non_retryable=True, next_retry_delay=2.5)
    error = rebuilt(raised(original))
    assert (error.type, error.details, error.non_retryable, error.next_retry_delay) == (
        "Busy",
        ("a", {"b": 1}),
        True,
        2.5,
    )
    assert pickle.loads(pickle.dumps(error)).details == error.details


def test_a_subclass_of_application_error_is_known_by_its_name() -> None:
    class OutOfStock(ApplicationError):
        pass

    failure = failure_of(OutOfStock("none left"))
    assert failure.type == "OutOfStock"
    assert "ApplicationError" in failure.mro


def test_details_that_cannot_be_encoded_are_left_out_and_the_failure_says_so() -> None:
    failure = failure_of(ApplicationError("x", details=[object()]))
    assert failure.details is None
    assert "details of this error could not be encoded" in failure.traceback


def test_groups_with_a_single_leaf_are_recorded_as_that_leaf() -> None:
    group = ExceptionGroup("outer", [ExceptionGroup("inner", [CardDeclined("no")])])
    assert failure_of(group).type == "CardDeclined"


def test_groups_with_several_leaves_come_back_as_groups() -> None:
    error = rebuilt(ExceptionGroup("both", [CardDeclined("a"), ExceptionGroup("one", [KeyError("b")])]))
    assert isinstance(error, ExceptionGroup)
    assert error.message == "both"
    assert [member.type for member in error.exceptions] == ["CardDeclined", "KeyError"]  # type: ignore[attr-defined]


def test_an_activity_error_comes_back_as_itself() -> None:
    cause = ApplicationError("no money", type="CardDeclined")
    original = ActivityError(
        "activity charge failed", activity="charge", activity_id=3, attempts=2, reason="error", cause=cause
    )
    error = rebuilt(raised(original))
    assert type(error) is ActivityError
    assert (error.activity, error.activity_id, error.attempts, error.reason) == ("charge", 3, 2, "error")
    assert error.cause.type == "CardDeclined"
    assert error.__cause__ is error.cause
    assert str(error) == "activity charge failed"


@pytest.mark.parametrize(
    "original",
    [
        PayloadError("too large", path="$.a", size_bytes=5),
        WorkflowFailedError("failed", workflow_id="w", run_id="r", cause=None),
        WorkflowTimedOutError("late", workflow_id="w", run_id="r"),
        ConfigError(["one", "two"]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_engine_errors_come_back_as_themselves(original: Any) -> None:
    error = rebuilt(original)
    assert type(error) is type(original)
    assert str(error) == str(original)
    assert vars(error) == vars(original)


def test_a_users_class_with_the_name_of_an_engine_error_is_not_taken_for_it() -> None:
    class PayloadError(Exception):
        pass

    assert type(rebuilt(PayloadError("mine"))) is ApplicationError


def test_an_engine_error_that_a_supervisor_words_needs_no_list_of_bases() -> None:
    assert type(exception_of(Failure(type="PayloadError", message="x"))) is PayloadError
    assert exception_of(Failure(type="ProcessCrashed", message="x")).type == "ProcessCrashed"  # type: ignore[attr-defined]


def test_the_place_an_error_was_raised_first_survives_its_way_through_another_process() -> None:
    first = rebuilt(raised(CardDeclined("no")))
    again = failure_of(raised(first))
    assert "Raised again at:" in again.traceback
    assert again.traceback.count("raise exc from cause") == 2


def test_everything_is_bounded() -> None:
    error: BaseException = ValueError("m" * 10 * MAX_MESSAGE_CHARS)
    for index in range(3 * MAX_CHAIN):
        error = raised(ValueError(str(index) * 100), error)
    failure = failure_of(error)
    depth = 1
    link = failure
    while link.cause is not None:
        link = link.cause
        depth += 1
    assert depth == MAX_CHAIN
    assert len(failure_of(ValueError("m" * 10 * MAX_MESSAGE_CHARS)).message) <= MAX_MESSAGE_CHARS
    assert len(failure_of(ExceptionGroup("g", [ValueError()] * 100)).members) == MAX_MEMBERS


def test_endless_recursion_gives_a_traceback_of_bounded_length() -> None:
    def deep() -> None:
        deep()

    with pytest.raises(RecursionError) as caught:
        deep()
    failure = failure_of(caught.value)
    assert failure.type == "RecursionError"
    assert len(failure.traceback) <= MAX_TRACEBACK_CHARS


def test_causes_that_go_round_in_a_circle_end() -> None:
    first, second = ValueError("a"), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    failure = failure_of(first)
    assert failure.cause is not None
    assert failure.cause.cause is None


def test_an_exception_whose_text_cannot_be_made_is_still_recorded() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    failure = failure_of(Broken())
    assert failure.type == "Broken"
    assert "RuntimeError" in failure.message


def test_text_that_is_no_unicode_can_still_be_sent() -> None:
    assert through_the_wire(failure_of(ValueError("file \udcff"))).message == "file \\udcff"


def test_notes_are_a_part_of_the_traceback() -> None:
    error = ValueError("x")
    error.add_note("while charging order 7")
    assert "while charging order 7" in failure_of(error).traceback


async def test_exceptions_that_are_no_exceptions_are_recorded_too() -> None:
    assert failure_of(SystemExit(3)).type == "SystemExit"
    failure = None
    with trio.move_on_after(0):
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            failure = failure_of(cancelled)
            raise
    assert failure is not None
    assert failure.type == "Cancelled"
