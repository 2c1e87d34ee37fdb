"""How workflows and activities are written: the decorators, their options, and what a call does."""

from durablefuture_trio.authoring._activity import ActivityDefinition, activity
from durablefuture_trio.authoring._activity_context import ActivityInfo
from durablefuture_trio.authoring._children import ChildOptions, ChildWorkflow, ExternalWorkflow
from durablefuture_trio.authoring._combinators import AsCompleted, as_completed, durable_map, first, gather, outcomes
from durablefuture_trio.authoring._definition import Definition, definition_of
from durablefuture_trio.authoring._futures import DurableFuture
from durablefuture_trio.authoring._messages import (
    MessageDefinition,
    QueryDefinition,
    SignalDefinition,
    UpdateDefinition,
)
from durablefuture_trio.authoring._options import ActivityOptions, activity_options
from durablefuture_trio.authoring._runtime import ParentInfo, WorkflowInfo
from durablefuture_trio.authoring._workflow import WorkflowDefinition, workflow

__all__ = [
    "ActivityDefinition",
    "ActivityInfo",
    "ActivityOptions",
    "AsCompleted",
    "ChildOptions",
    "ChildWorkflow",
    "Definition",
    "DurableFuture",
    "ExternalWorkflow",
    "MessageDefinition",
    "ParentInfo",
    "QueryDefinition",
    "SignalDefinition",
    "UpdateDefinition",
    "WorkflowDefinition",
    "WorkflowInfo",
    "activity",
    "activity_options",
    "as_completed",
    "definition_of",
    "durable_map",
    "first",
    "gather",
    "outcomes",
    "workflow",
]
