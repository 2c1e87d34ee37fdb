"""What one value alone cannot show: modules that exist, keys that contradict each other, names given twice."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from durablefuture_trio.supervisor._settings_reader import Report
from durablefuture_trio.supervisor._toml_lines import Path

if TYPE_CHECKING:
    from durablefuture_trio.supervisor.settings import Settings

_URL_SCHEMES = ("nats", "tls", "ws", "wss")


def check_settings(settings: Settings, report: Report, *, check_modules: bool) -> None:
    """Report everything that is wrong in the whole."""
    _check_roles(settings, report)
    _check_queues(settings, report)
    _check_nats(settings, report)
    if settings.http.listen is not None and int(settings.http.listen.rpartition(":")[2]) > 65535:
        report.problem(("http", "listen"), "a port number is at most 65535")
    if check_modules:
        _check_modules(settings, report)


def _check_roles(settings: Settings, report: Report) -> None:
    for index, role in enumerate(settings.supervisor.roles):
        if role in settings.supervisor.roles[:index]:
            report.problem(("supervisor", "roles", index), f"{role!r} is given twice")


def _check_queues(settings: Settings, report: Report) -> None:
    seen: set[str] = set()
    for index, pool in enumerate(settings.activity_pool):
        if pool.task_queue in seen:
            report.problem(
                ("activity_pool", index, "task_queue"),
                f"the task queue {pool.task_queue!r} has a pool already; give one of the two another name, "
                "or raise 'processes'",
            )
        seen.add(pool.task_queue)


def _check_nats(settings: Settings, report: Report) -> None:
    nats = settings.nats
    for url in nats.urls:
        if problem := _url_problem(url):
            report.problem(("nats", "url"), problem)
    if (nats.user is None) != (nats.password is None):
        missing, given = ("password", "user") if nats.password is None else ("user", "password")
        report.problem(("nats", given), f"needs {missing!r} beside it")
    if nats.credentials is not None and nats.user is not None:
        report.problem(("nats", "credentials"), "give either 'credentials' or 'user' and 'password', not both")
    if nats.url is None:
        for key in ("credentials", "user", "password", "tls"):
            if getattr(nats, key) is not None:
                report.problem(("nats", key), "is for a server of your own: give its 'url' too")
        if nats.replicas > 1:
            report.problem(("nats", "replicas"), "the embedded server is one machine: give the 'url' of a cluster")
    if nats.credentials is not None:
        _check_file(nats.credentials, ("nats", "credentials"), report)
    if nats.tls is not None:
        if (nats.tls.cert is None) != (nats.tls.key is None):
            given = "cert" if nats.tls.key is None else "key"
            report.problem(("nats", "tls", given), "'cert' and 'key' belong together: give both")
        for key in ("ca", "cert", "key"):
            file = getattr(nats.tls, key)
            if file is not None:
                _check_file(file, ("nats", "tls", key), report)
    binary = nats.embedded.binary
    if binary is not None and shutil.which(binary) is None:
        report.problem(("nats", "embedded", "binary"), f"there is no program {binary!r}")


def _url_problem(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _URL_SCHEMES and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        usable = False
    return "" if usable else f'{url!r} is not the URL of a NATS server; write e.g. "nats://127.0.0.1:4222"'


def _check_file(file: str, path: Path, report: Report) -> None:
    if not os.path.isfile(file):
        report.problem(path, f"there is no file {file}")


# --- modules --------------------------------------------------------------------------------------------------------


def _check_modules(settings: Settings, report: Report) -> None:
    modules = settings.supervisor.modules
    if not modules:
        report.problem(
            ("supervisor", "modules"),
            "is missing or empty: list the modules that define your workflows and activities, "
            'e.g. modules = ["shop.workflows"]',
        )
    for index, module in enumerate(modules):
        path: Path = ("supervisor", "modules", index)
        if module in modules[:index]:
            report.problem(path, f"the module {module!r} is given twice")
        elif missing := missing_module(module, settings.import_path):
            report.problem(path, missing)


def missing_module(module: str, import_path: Sequence[str]) -> str:
    """Why `module` cannot be found, in words; empty when it can. Nothing is imported, parent packages neither."""
    names = module.split(".")
    if not all(name.isidentifier() for name in names):
        return f'{module!r} is not the name of a module; write it as in an import, e.g. "shop.workflows"'
    search: Sequence[str] | None = None
    for depth in range(1, len(names) + 1):
        name = ".".join(names[:depth])
        spec = _find(name, search, import_path)
        if spec is None:
            inside = f" in the package {'.'.join(names[: depth - 1])!r}" if depth > 1 else ""
            places = ", ".join(import_path[:2])
            return f"there is no module {name!r}{inside}; looked in {places} and where Python's packages are"
        search = spec.submodule_search_locations
        if search is None and depth < len(names):
            return f"there is no module {module!r}: {name!r} is a module, not a package"
    return ""


def _find(name: str, search: Sequence[str] | None, import_path: Sequence[str]) -> importlib.machinery.ModuleSpec | None:
    path = list(import_path) if search is None else list(search)
    # By its last part: a package without __init__.py inside another would ask for the path of that, as imported.
    spec = importlib.machinery.PathFinder.find_spec(name.rpartition(".")[2], path)
    if spec is not None:
        return spec
    for finder in sys.meta_path:  # built-in modules, and the hooks of editable installs
        spec = finder.find_spec(name, search, None) if hasattr(finder, "find_spec") else None
        if spec is not None:
            return spec
    return None
