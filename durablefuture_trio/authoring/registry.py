"""The definitions of an application: found in its modules, checked, and known by name."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from types import CodeType, FunctionType, ModuleType
from typing import Any

from durablefuture_trio.authoring._activity import ActivityDefinition
from durablefuture_trio.authoring._definition import Definition, definition_of
from durablefuture_trio.authoring._messages import MessageDefinition
from durablefuture_trio.authoring._workflow import WorkflowDefinition
from durablefuture_trio.errors import ConfigError

_OWN_DIRECTORY = os.path.dirname(__file__)


class Registry:
    """All workflows and activities of an application, by name.

    Attributes:
        workflows, activities: the definitions by registered name, sorted.
        code_hash: digest of the source of the modules that hold them (of the bytecode of those that have no module).
    """

    def __init__(
        self,
        workflows: Mapping[str, WorkflowDefinition[..., Any]],
        activities: Mapping[str, ActivityDefinition[..., Any]],
        code_hash: str,
    ) -> None:
        self.workflows = dict(sorted(workflows.items()))
        self.activities = dict(sorted(activities.items()))
        self.code_hash = code_hash

    @classmethod
    def load(cls, modules: Sequence[str], pickled: bytes = b"") -> Registry:
        """Import `modules` and collect the definitions among their attributes.

        A definition that several modules import counts once; two different ones of a name are a problem.

        Args:
            modules: names of modules.
            pickled: what `pickle_definitions` made, for definitions that cannot be imported.

        Raises:
            ConfigError: a module is missing or fails when imported, a name is used twice, or the values of a definition
                cannot be encoded; ``problems`` has one line for each.
        """
        collection = _Collection()
        for name in modules:
            collection.add_module(name)
        if pickled:
            collection.add_pickled(pickled)
        return collection.registry()

    @classmethod
    def of(cls, definitions: Iterable[Any]) -> Registry:
        """A registry of these definitions (or decorated classes), without importing anything.

        Raises:
            ConfigError: as `load`.
        """
        collection = _Collection()
        for candidate in definitions:
            collection.add_candidate(candidate, "the definitions given")
        return collection.registry()


def pickle_definitions(definitions: Iterable[Any]) -> bytes:
    """Definitions (or decorated classes) that cannot be imported, for `Registry.load` in another process.

    Raises:
        TypeError: one of them refers to something that cannot be pickled; the message says what.
    """
    import cloudpickle  # type: ignore[import-untyped]  # it has no type hints

    wanted = [definition_of(candidate) or candidate for candidate in definitions]
    try:
        data: bytes = cloudpickle.dumps(wanted)
    except Exception as error:
        names = ", ".join(str(getattr(candidate, "name", candidate)) for candidate in wanted)
        raise TypeError(
            f"{names} cannot be sent to another process ({error}): define them in a module that can be imported, or do "
            "not use such an object as a variable around them"
        ) from error
    return data


class _Collection:
    """Definitions on their way into a registry, and the problems met."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[Definition, str]] = {}
        self._messages: list[MessageDefinition[..., Any]] = []
        self._problems: list[str] = []

    def add_module(self, name: str) -> None:
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                self._problems.append(
                    f"module {name} is not found: check its name in `modules`, and that its directory is on the "
                    "import path"
                )
            else:
                self._problems.append(f"module {name} cannot be imported: {_words(error)}")
            return
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's module raises is a problem to report
            self._problems.append(f"module {name} cannot be imported: {_words(error)}")
            return
        for value in list(vars(module).values()):
            if definition_of(value) is not None:
                self.add_candidate(value, f"module {name}")

    def add_pickled(self, pickled: bytes) -> None:
        try:
            candidates = pickle.loads(pickled)
        except Exception as error:  # noqa: BLE001 - whatever the import of a module it refers to raises
            self._problems.append(f"the definitions sent along cannot be read: {_words(error)}")
            return
        for candidate in candidates:
            self.add_candidate(candidate, "the definitions sent along")

    def add_candidate(self, candidate: Any, where: str) -> None:
        if isinstance(candidate, MessageDefinition):
            # References belong to no namespace: many workflows may know a signal of the same name.
            self._messages.append(candidate)
            return
        definition = definition_of(candidate)
        if definition is None:
            self._problems.append(f"{where}: {candidate!r} is neither an @activity nor a @workflow")
            return
        key = (definition.kind, definition.name)
        known = self._found.get(key)
        if known is None:
            self._found[key] = (definition, where)
        elif not _same(known[0], definition):
            problem = (
                f"two {'activities' if definition.kind == 'activity' else 'workflows'} have the name "
                f"{definition.name}: {_place(known[0])} and {_place(definition)}; rename one, or give it another with "
                f"@{definition.kind}(name=...)"
            )
            # A module may know the same definition under several names.
            if problem not in self._problems:
                self._problems.append(problem)

    def registry(self) -> Registry:
        definitions = [definition for definition, _ in self._found.values()]
        checked: list[Definition] = [*definitions, *self._messages]
        for definition in checked:
            try:
                definition.check_hints()
            except TypeError as error:
                problem = f"{_place(definition)}: {error}"
                if problem not in self._problems:  # several modules may import a reference
                    self._problems.append(problem)
        if self._problems:
            raise ConfigError(self._problems)
        return Registry(
            {one.name: one for one in definitions if isinstance(one, WorkflowDefinition)},
            {one.name: one for one in definitions if isinstance(one, ActivityDefinition)},
            _code_hash(definitions),
        )


def _same(first: Definition, second: Definition) -> bool:
    # Copies with other options share the function; they are the same activity.
    return first.source is second.source


def _place(definition: Definition) -> str:
    source = definition.source
    code = getattr(source, "__code__", None)
    line = f":{code.co_firstlineno}" if code is not None else ""
    return f"{source.__module__}.{source.__qualname__}{line}"


def _words(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    # The line to mend is the user's: a decorator that refuses what it was put on raises in this package.
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and os.path.dirname(frame.filename) != _OWN_DIRECTORY
    ]
    if isinstance(error, SyntaxError) or not frames:
        return text
    return f"{text} ({frames[-1].filename}:{frames[-1].lineno})"


def _code_hash(definitions: Iterable[Definition]) -> str:
    digest = hashlib.sha256()
    modules: dict[str, ModuleType] = {}
    without_module: list[Definition] = []
    for definition in definitions:
        module = sys.modules.get(definition.source.__module__)
        if module is not None and definition.is_importable():
            modules[module.__name__] = module
        else:
            without_module.append(definition)
    for name, module in sorted(modules.items()):
        digest.update(f"module {name}\0".encode())
        digest.update(_source_of(module))
    for definition in sorted(without_module, key=lambda one: (one.kind, one.name)):
        digest.update(f"{definition.kind} {definition.name}\0".encode())
        _update_with(digest, definition.source)
    return digest.hexdigest()


def _source_of(module: ModuleType) -> bytes:
    path = getattr(module, "__file__", None)
    if path is not None:
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError:
            # Imported out of an archive: its loader knows the source.
            pass
    get_source = getattr(getattr(module, "__loader__", None), "get_source", None)
    source = get_source(module.__name__) if get_source is not None else None
    return (source or "").encode("utf-8", "surrogatepass")


def _update_with(digest: Any, source: Any) -> None:
    if isinstance(source, type):
        for name, value in sorted(vars(source).items()):
            function = value.fn if isinstance(value, MessageDefinition) else value
            if isinstance(function, FunctionType):
                digest.update(name.encode())
                _update_with_code(digest, function.__code__)
        return
    _update_with_code(digest, source.__code__)


def _update_with_code(digest: Any, code: CodeType) -> None:
    digest.update(code.co_code)
    digest.update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _update_with_code(digest, constant)
        elif isinstance(constant, frozenset):
            digest.update(repr(sorted(map(repr, constant))).encode())
        else:
            digest.update(repr(constant).encode())
