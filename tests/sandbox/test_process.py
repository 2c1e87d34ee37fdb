from __future__ import annotations

from durablefuture_trio.ports.frames import Loaded, Ready
from tests._support.sandbox import SandboxProcess, Story

WORKFLOWS = "tests._support.sandbox_workflows"


def test_the_child_runs_a_workflow_with_one_activity_call_from_start_to_result() -> None:
    with SandboxProcess([WORKFLOWS]) as child:
        ready = child.receive()
        assert isinstance(ready, Ready)
        assert ready.pid == child.process.pid
        assert "total" in ready.workflows
        assert "add" in ready.activities
        story = Story(child, "total", [2])  # type: ignore[arg-type]  # it has the same handle()
        (schedule,) = story.start()
        assert (schedule.call, schedule.name, schedule.arguments.data) == (1, "add", b"[0,0]")
        story.complete(1, 0)
        (complete,) = story.complete(2, 1)
        assert complete.result.data == b"1"
        loaded = story.replay()
        assert isinstance(loaded, Loaded)
        assert loaded.unmatched == ()
