"""How workflows and activities are written: the decorators, their options, and what a call does."""

from durablefuture_trio.authoring._activity import ActivityDefinition, activity
from durablefuture_trio.authoring._activity_context import ActivityInfo
from durablefuture_trio.authoring._definition import Definition, definition_of
from durablefuture_trio.authoring._options import ActivityOptions, activity_options
from durablefuture_trio.authoring._runtime import WorkflowInfo
from durablefuture_trio.authoring._workflow import WorkflowDefinition, workflow

__all__ = [
    "ActivityDefinition",
    "ActivityInfo",
    "ActivityOptions",
    "Definition",
    "WorkflowDefinition",
    "WorkflowInfo",
    "activity",
    "activity_options",
    "definition_of",
    "workflow",
]
