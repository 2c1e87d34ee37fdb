"""Where a commit that does not fit one message may be cut."""

from __future__ import annotations

import pytest

from durablefuture_trio import codec
from durablefuture_trio.engine import draft
from durablefuture_trio.engine.draft import freeze
from durablefuture_trio.history.commit import Commit, decode_commit
from durablefuture_trio.history.events import ActivityScheduled, Event, WorkflowStarted, WorkflowTerminated
from durablefuture_trio.history.options import ActivityOptionsRecord

LARGE = codec.encode_arguments(("x" * 3000,))

REPLACEMENT: list[Event] = [
    WorkflowTerminated(id=2, at=1.0, reason="replaced"),
    WorkflowStarted(id=1, at=1.0, workflow_id="w", run_id="r2", workflow="flow", arguments=LARGE),
    ActivityScheduled(id=2, at=1.0, activity_id=1, name="act", arguments=LARGE, options=ActivityOptionsRecord()),
]


@pytest.mark.parametrize("is_indivisible", [True, False])
def test_h11d_no_cut_comes_between_the_end_of_a_run_and_its_successor(
    is_indivisible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_indivisible:
        monkeypatch.setattr(draft, "_indivisible_head", lambda events: 1)
    template = Commit(run_id="r2", commit_id="", first_n=5, finished=True, consumed=0, events=())
    parts = freeze(template, REPLACEMENT, 5, 4000, lambda: "c")
    kinds = [[type(event).__name__ for event in decode_commit(part.body).events] for part in parts]
    assert (kinds[0] == ["WorkflowTerminated", "WorkflowStarted"]) is is_indivisible
    assert kinds[-1] == ["ActivityScheduled"]
