"""What came of a run that `Story` tells, for tests of workflow code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.codec import decode_value
from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine.commands import Command, CompleteWorkflow, FailWorkflow
from durablefuture_trio.ports.frames import Loaded
from durablefuture_trio.sandbox._host import ReplayHost
from tests._support.sandbox import Story


def run_of(definition: Any, *arguments: Any) -> Story:
    """A run of this workflow, in a host of its own."""
    return Story(ReplayHost(Registry.of([definition]).workflows), definition.name, arguments)


def result_of(story: Story) -> Any:
    """What the workflow returned in the last activation."""
    (command,) = [command for command in story.commands if isinstance(command, CompleteWorkflow | FailWorkflow)]
    assert isinstance(command, CompleteWorkflow), command
    return decode_value(command.result, Any)


def failure_of(story: Story) -> Failure:
    """What the workflow raised in the last activation."""
    (command,) = [command for command in story.commands if isinstance(command, FailWorkflow)]
    return command.failure


def names_of(commands: Sequence[Command]) -> list[str]:
    """Kinds and call numbers: ``"Schedule 1"``, ``"Cancel 1"``, ``"StartChild 2"``, ``"Complete "``."""
    return [
        f"{type(command).__name__.removesuffix('Activity').removesuffix('Workflow')} {getattr(command, 'call', '')}"
        for command in commands
    ]


def replays(story: Story) -> None:
    """The history so far replays in another host, and the run goes on there."""
    host = story.host
    assert isinstance(host, ReplayHost)
    host.close()
    story.host = ReplayHost(host._workflows)
    answer = story.replay()
    assert isinstance(answer, Loaded), answer
    assert answer.unmatched == ()
    assert answer.wake_at == story.wake_at
