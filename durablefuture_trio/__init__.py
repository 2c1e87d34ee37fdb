"""Durable execution for Python: ordinary Trio programs that survive the death of any process, on NATS JetStream."""

from __future__ import annotations

from durablefuture_trio._version import __version__

# Type checkers take any variable of this name for true; importing it would make `typing` the better part of the cost.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from durablefuture_trio.app import Supervisor, open_supervisor
    from durablefuture_trio.authoring import (
        ActivityDefinition,
        ActivityInfo,
        ActivityOptions,
        AsCompleted,
        ChildWorkflow,
        DurableFuture,
        ExternalWorkflow,
        ParentInfo,
        QueryDefinition,
        SignalDefinition,
        UpdateDefinition,
        WorkflowDefinition,
        WorkflowInfo,
        activity,
        activity_options,
        as_completed,
        durable_map,
        first,
        gather,
        outcomes,
        workflow,
    )
    from durablefuture_trio.client import connect
    from durablefuture_trio.errors import (
        ActivityError,
        ApplicationError,
        BrokerUnavailableError,
        ChildWorkflowError,
        ConfigError,
        DurableFutureError,
        HistoryError,
        LimitExceededError,
        NamespaceError,
        NondeterminismError,
        PayloadError,
        QueryFailedError,
        RequestFailedError,
        SandboxViolationError,
        UpdateFailedError,
        UpdateRejectedError,
        WorkflowAlreadyStartedError,
        WorkflowCancelledError,
        WorkflowError,
        WorkflowFailedError,
        WorkflowNotFoundError,
        WorkflowTerminatedError,
        WorkflowTimedOutError,
    )
    from durablefuture_trio.history.options import RetryPolicy

# Where each public name lives. Lazy (PEP 562), because child processes and the command line import this package too,
# and none of them needs all of it.
_AUTHORING = "durablefuture_trio.authoring"
_ERRORS = "durablefuture_trio.errors"
_HOMES = {
    "ActivityDefinition": _AUTHORING,
    "ActivityInfo": _AUTHORING,
    "ActivityOptions": _AUTHORING,
    "AsCompleted": _AUTHORING,
    "ChildWorkflow": _AUTHORING,
    "DurableFuture": _AUTHORING,
    "ExternalWorkflow": _AUTHORING,
    "ParentInfo": _AUTHORING,
    "QueryDefinition": _AUTHORING,
    "SignalDefinition": _AUTHORING,
    "UpdateDefinition": _AUTHORING,
    "WorkflowDefinition": _AUTHORING,
    "WorkflowInfo": _AUTHORING,
    "activity": _AUTHORING,
    "activity_options": _AUTHORING,
    "as_completed": _AUTHORING,
    "durable_map": _AUTHORING,
    "first": _AUTHORING,
    "gather": _AUTHORING,
    "outcomes": _AUTHORING,
    "workflow": _AUTHORING,
    "Supervisor": "durablefuture_trio.app",
    "open_supervisor": "durablefuture_trio.app",
    "connect": "durablefuture_trio.client",
    "RetryPolicy": "durablefuture_trio.history.options",
    "ActivityError": _ERRORS,
    "ApplicationError": _ERRORS,
    "BrokerUnavailableError": _ERRORS,
    "ChildWorkflowError": _ERRORS,
    "ConfigError": _ERRORS,
    "DurableFutureError": _ERRORS,
    "HistoryError": _ERRORS,
    "LimitExceededError": _ERRORS,
    "NamespaceError": _ERRORS,
    "NondeterminismError": _ERRORS,
    "PayloadError": _ERRORS,
    "QueryFailedError": _ERRORS,
    "RequestFailedError": _ERRORS,
    "SandboxViolationError": _ERRORS,
    "UpdateFailedError": _ERRORS,
    "UpdateRejectedError": _ERRORS,
    "WorkflowAlreadyStartedError": _ERRORS,
    "WorkflowCancelledError": _ERRORS,
    "WorkflowError": _ERRORS,
    "WorkflowFailedError": _ERRORS,
    "WorkflowNotFoundError": _ERRORS,
    "WorkflowTerminatedError": _ERRORS,
    "WorkflowTimedOutError": _ERRORS,
}

__all__ = [
    "ActivityDefinition",
    "ActivityError",
    "ActivityInfo",
    "ActivityOptions",
    "ApplicationError",
    "AsCompleted",
    "BrokerUnavailableError",
    "ChildWorkflow",
    "ChildWorkflowError",
    "ConfigError",
    "DurableFuture",
    "DurableFutureError",
    "ExternalWorkflow",
    "HistoryError",
    "LimitExceededError",
    "NamespaceError",
    "NondeterminismError",
    "ParentInfo",
    "PayloadError",
    "QueryDefinition",
    "QueryFailedError",
    "RequestFailedError",
    "RetryPolicy",
    "SandboxViolationError",
    "SignalDefinition",
    "Supervisor",
    "UpdateDefinition",
    "UpdateFailedError",
    "UpdateRejectedError",
    "WorkflowAlreadyStartedError",
    "WorkflowCancelledError",
    "WorkflowDefinition",
    "WorkflowError",
    "WorkflowFailedError",
    "WorkflowInfo",
    "WorkflowNotFoundError",
    "WorkflowTerminatedError",
    "WorkflowTimedOutError",
    "__version__",
    "activity",
    "activity_options",
    "as_completed",
    "connect",
    "durable_map",
    "first",
    "gather",
    "open_supervisor",
    "outcomes",
    "workflow",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
