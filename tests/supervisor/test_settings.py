"""The configuration: what it says, and everything that can be wrong with it, at once and with its place."""

from __future__ import annotations

import os
import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from durablefuture_trio.errors import ConfigError
from durablefuture_trio.supervisor._toml_lines import key_lines
from durablefuture_trio.supervisor.settings import Settings, load_settings, render_settings

FULL = """
    [supervisor]
    namespace = "shop"
    modules = ["shop_app.workflows", "shop_app.activities"]
    roles = ["workflows", "activities"]
    drain_timeout = 20
    [nats]
    url = "nats://a:4222,nats://b:4222"
    user = "me"
    password = "secret"
    replicas = 3
    [nats.embedded]
    data_dir = "data"
    sync = "10s"
    [sandbox]
    processes = 3
    memory_limit_mb = 256
    activation_timeout = 1.5
    cached_workflows = 10
    [[activity_pool]]
    task_queue = "default"
    processes = 2
    concurrency = 100
    [[activity_pool]]
    task_queue = "slow"
    processes = 1
    [http]
    listen = "127.0.0.1:8233"
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with a package beside the configuration; importing its modules would fail."""
    package = tmp_path / "shop_app"
    package.mkdir()
    for module in ("__init__", "workflows", "activities"):
        (package / f"{module}.py").write_text("raise RuntimeError('looking for a module must not import it')\n")
    return tmp_path


def load(directory: Path, text: str, environ: Mapping[str, str] | None = None, **options: Any) -> Settings:
    file = directory / "supervisor.toml"
    file.write_text(textwrap.dedent(text).lstrip("\n"))
    return load_settings(file, environ or {}, **options)


def problems(directory: Path, text: str, environ: Mapping[str, str] | None = None, **options: Any) -> list[str]:
    """The problems, each without the path of the file."""
    with pytest.raises(ConfigError) as raised:
        load(directory, text, environ, **options)
    prefix = str(directory / "supervisor.toml")
    return [problem.removeprefix(prefix).removeprefix(":") for problem in raised.value.problems]


def test_every_key_of_the_file_arrives(shop: Path) -> None:
    settings = load(shop, FULL)
    assert settings.supervisor.modules == ("shop_app.workflows", "shop_app.activities")
    assert settings.supervisor.drain_timeout == 20.0
    assert settings.nats.urls == ("nats://a:4222", "nats://b:4222")
    assert settings.nats.replicas == 3
    assert settings.nats.embedded.sync == "10s"
    assert (settings.sandbox.processes, settings.sandbox.activation_timeout) == (3, 1.5)
    assert [(pool.task_queue, pool.processes, pool.concurrency) for pool in settings.activity_pool] == [
        ("default", 2, 100),
        ("slow", 1, 100),
    ]
    assert settings.http.listen == "127.0.0.1:8233"


def test_the_defaults_are_those_of_the_documentation(tmp_path: Path) -> None:
    settings = load(tmp_path, "", check_modules=False)
    assert settings.supervisor.namespace == "default"
    assert settings.supervisor.roles == ("workflows", "activities")
    assert settings.supervisor.drain_timeout == 30.0
    assert settings.nats.url is None
    assert settings.nats.embedded.sync == "always"
    assert (settings.sandbox.processes, settings.sandbox.memory_limit_mb) == (1, 512)
    assert (settings.sandbox.activation_timeout, settings.sandbox.cached_workflows) == (2.0, 1000)
    (pool,) = settings.activity_pool
    assert (pool.task_queue, pool.processes, pool.concurrency) == ("default", 2, 100)
    assert settings.http.listen is None


def test_paths_of_the_file_are_relative_to_the_file_and_those_of_the_environment_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load(tmp_path, "", check_modules=False).nats.embedded.data_dir == str(tmp_path / ".durablefuture")
    given = load(tmp_path, '[nats.embedded]\ndata_dir = "x"', check_modules=False)
    assert given.nats.embedded.data_dir == str(tmp_path / "x")
    assert given.namespace_dir == str(tmp_path / "x" / "namespaces" / "default")
    environ = {"DURABLEFUTURE_NATS_EMBEDDED_DATA_DIR": "y"}
    assert load(tmp_path, "", environ, check_modules=False).nats.embedded.data_dir == str(elsewhere / "y")


def test_modules_beside_the_file_come_first_on_the_import_path_of_children(
    shop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    settings = load(shop, '[supervisor]\nmodules = ["shop_app.workflows"]')
    assert settings.import_path[:2] == (str(shop), str(elsewhere))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[supervisor]\n\nnamespac = 'x'", "3: [supervisor] namespac: unknown key; did you mean 'namespace'?"),
        ("[sandbox]\nconcurrency = 1", "2: [sandbox] concurrency: unknown key; it belongs to [[activity_pool]]"),
        ("[sandboxes]\na = 1", "1: [sandboxes]: unknown table; did you mean 'sandbox'?"),
        ("path = 'x'", "1: [path]: unknown key; known here: supervisor, nats, sandbox, activity_pool, http, log"),
        (
            "[sandbox]\nprocesses = '2'",
            '2: [sandbox] processes: expected a whole number from 1 to 256; got the string "2"',
        ),
        ("[sandbox]\nprocesses = true", "2: [sandbox] processes: expected a whole number from 1 to 256; got true"),
        ("[sandbox]\nprocesses = 0", "2: [sandbox] processes: expected a whole number from 1 to 256; got the number 0"),
        (
            "[sandbox]\nactivation_timeout = nan",
            "2: [sandbox] activation_timeout: expected a number of seconds, above 0 and up to 604800; "
            "got the number nan",
        ),
        (
            "[supervisor]\ndrain_timeout = -1",
            "2: [supervisor] drain_timeout: expected a number of seconds, from 0 to 604800; got the number -1",
        ),
        (
            "[supervisor]\nnamespace = 'a.b'",
            "2: [supervisor] namespace: expected 1 to 64 letters, digits, '-' or '_', e.g. \"default\"; "
            'got the string "a.b"',
        ),
        (
            "[supervisor]\nroles = ['workflow']",
            '2: [supervisor] roles: expected a list with "workflows", "activities" or both; got the list ["workflow"]',
        ),
        ("[supervisor]\nroles = ['workflows', 'workflows']", "2: [supervisor] roles: 'workflows' is given twice"),
        ("supervisor = 3", "1: [supervisor]: expected a table, [supervisor]; got the number 3"),
        (
            "[activity_pool]\ntask_queue = 'a'",
            "1: [activity_pool]: expected [[activity_pool]], with two brackets: there may be several",
        ),
        (
            "[[activity_pool]]\n[[activity_pool]]\nprocesses = 1",
            "2: [[activity_pool]] task_queue: the task queue 'default' has a pool already; give one of the two another "
            "name, or raise 'processes'",
        ),
        (
            "[nats]\nurl = 'http://x'",
            "2: [nats] url: 'http://x' is not the URL of a NATS server; write e.g. \"nats://127.0.0.1:4222\"",
        ),
        ("[nats]\nurl = 'nats://x'\nuser = 'u'", "3: [nats] user: needs 'password' beside it"),
        ("[nats.tls]\n", "1: [nats] tls: is for a server of your own: give its 'url' too"),
        (
            "[nats]\nreplicas = 3",
            "2: [nats] replicas: the embedded server is one machine: give the 'url' of a cluster",
        ),
        ("[nats]\nurl = 'nats://x'\ncredentials = '/no/such'", "3: [nats] credentials: there is no file /no/such"),
        (
            "[nats.embedded]\nbinary = 'no-such-program'",
            "2: [nats.embedded] binary: there is no program 'no-such-program'",
        ),
        ("[http]\nlisten = 'nowhere'", '2: [http] listen: expected "host:port"; got the string "nowhere"'),
        ("[http]\nlisten = 'h:70000'", "2: [http] listen: a port number is at most 65535"),
        (
            "[log]\nlevel = 'loud'",
            '2: [log] level: expected "debug", "info", "warning" or "error"; got the string "loud"',
        ),
        ("[sandbox]\nprocesses = \n", "2:13: not valid TOML: Invalid value"),
        ("[sandbox]\n[sandbox]\n", "2:9: not valid TOML: Cannot declare ('sandbox',) twice"),
    ],
)
def test_a_problem_names_its_line_and_key_and_what_was_expected(tmp_path: Path, text: str, expected: str) -> None:
    assert problems(tmp_path, text, check_modules=False) == [expected]


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(shop: Path) -> None:
    found = problems(
        shop,
        """
        [supervisor]
        modules = ["shop_app.workflows",
                   "shop_app.activites", "no_such_package.x"]
        rolles = []
        [sandbox]
        processes = "many"
        [[activity_pool]]
        concurrency = 0
        """,
        {"DURABLEFUTURE_NATS_REPLICAS": "2"},
    )
    assert [problem.split(":")[0] for problem in found] == [
        "3",
        "3",
        "4",
        "6",
        "8",
        "environment variable DURABLEFUTURE_NATS_REPLICAS",
    ]
    assert "'shop_app.activites' in the package 'shop_app'" in found[0]
    assert "there is no module 'no_such_package'" in found[1]


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ("[]", "is missing or empty"),
        ('["shop_app", "shop_app"]', "given twice"),
        ('["shop-app"]', "is not the name of a module"),
        ('["shop_app.workflows.deeper"]', "'shop_app.workflows' is a module, not a package"),
    ],
)
def test_modules_that_cannot_be_used_are_problems(shop: Path, modules: str, expected: str) -> None:
    (problem,) = problems(shop, f"[supervisor]\nmodules = {modules}")
    assert problem.startswith("2: [supervisor] modules: ")
    assert expected in problem


def test_a_file_that_is_not_there_or_not_text_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; name the configuration with --config FILE"):
        load_settings(tmp_path / "nowhere.toml", {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path / "binary.toml", {})


def test_the_environment_overrides_the_file_with_one_or_two_underscores(shop: Path) -> None:
    environ = {
        "DURABLEFUTURE_SUPERVISOR__NAMESPACE": "prod",
        "DURABLEFUTURE_SUPERVISOR_MODULES": "shop_app.workflows",
        "DURABLEFUTURE_NATS_EMBEDDED_DATA_DIR": "/data",
        "DURABLEFUTURE_SANDBOX_ACTIVATION_TIMEOUT": "0.5",
        "DURABLEFUTURE_ACTIVITY_POOL_1_PROCESSES": "9",
        "DURABLEFUTURE_ACTIVITY_POOL__0__CONCURRENCY": "5",
        "UNRELATED": "x",
    }
    settings = load(shop, FULL, environ)
    assert settings.supervisor.namespace == "prod"
    assert settings.supervisor.modules == ("shop_app.workflows",)
    assert settings.nats.embedded.data_dir == "/data"
    assert settings.sandbox.activation_timeout == 0.5
    assert [(pool.processes, pool.concurrency) for pool in settings.activity_pool] == [(2, 5), (9, 100)]


def test_without_a_file_the_environment_is_enough() -> None:
    settings = load_settings(None, {"DURABLEFUTURE_NATS_URL": "nats://x"}, check_modules=False)
    assert settings.nats.urls == ("nats://x",)
    assert settings.nats.embedded.data_dir == os.path.join(os.getcwd(), ".durablefuture")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("DURABLEFUTURE_NAMESPACE", "x", "there is no such setting; did you mean DURABLEFUTURE_SUPERVISOR_NAMESPACE?"),
        ("DURABLEFUTURE_SANDBOX_PROCESSES", "two", 'expected a whole number from 1 to 256; got "two"'),
        ("DURABLEFUTURE_SANDBOX_PROCESSES", "0", "expected a whole number from 1 to 256; got the number 0"),
        ("DURABLEFUTURE_ACTIVITY_POOL_3_PROCESSES", "1", "the table it belongs to does not exist in the configuration"),
    ],
)
def test_a_bad_variable_is_a_problem_that_names_it(tmp_path: Path, variable: str, value: str, expected: str) -> None:
    found = problems(tmp_path, "", {variable: value}, check_modules=False)
    assert found == [f"environment variable {variable}: {expected}"]


def test_rendered_settings_are_read_back_the_same_but_for_passwords(shop: Path) -> None:
    settings = load(shop, FULL.replace("nats://a:4222", "nats://u:geheim@a:4222"))
    text = render_settings(settings)
    assert "secret" not in text
    assert "geheim" not in text
    again = load(shop, text)
    assert again.sandbox == settings.sandbox
    assert again.activity_pool == settings.activity_pool
    assert again.supervisor == settings.supervisor
    assert again.nats.embedded == settings.nats.embedded


def test_lines_are_found_through_everything_toml_allows() -> None:
    text = textwrap.dedent(
        """\
        # comment with [brackets] and "quotes
        top.dotted."quoted key" = 'it'
        [a]  # comment
        text = %
        [not.a.table]
        escaped \\% quote
        %
        raw = &
        x = 1 \\&
        list = [ 1, # one ]
          [2, 3],
          { inner = "}" , other = 4 },
        ]
        [[b]]
        x = 1979-05-27T07:32:00Z
        [[b]]
        x = 2
        [b.sub]
        y = 3
        """
    )
    text = text.replace("%", '"' * 3).replace("&", "'" * 3)
    assert set(tomllib.loads(text)) == {"top", "a", "b"}
    lines = key_lines(text)
    assert lines["top", "dotted", "quoted key"] == 2
    assert lines["a", "text"] == 4
    assert lines["a", "raw"] == 8
    assert (lines["a", "list", 0], lines["a", "list", 1], lines["a", "list", 2, "inner"]) == (10, 11, 12)
    assert (lines["b", 0, "x"], lines["b", 1, "x"], lines["b", 1, "sub", "y"]) == (15, 17, 19)
