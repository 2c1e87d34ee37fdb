"""A wrong configuration or wrong code ends the supervisor at once, with every problem named."""

from __future__ import annotations

from textwrap import dedent

import pytest

from tests._support.installation import Installation

WORKFLOW = """
    from durablefuture_trio import workflow

    @workflow
    async def order() -> int:
        return 1
    """


async def test_all_problems_of_a_configuration_are_told_at_once_with_file_line_and_key(
    installation: Installation,
) -> None:
    installation.module("shop", WORKFLOW)
    installation.configure(
        """\
        [supervisor]
        namespce = "default"
        modules = ["shop", "warehouse"]
        drain_timeout = "soon"
        [[activity_pool]]
        task_queue = "gpu"
        [[activity_pool]]
        task_queue = "gpu"
        """
    )
    done = await installation.refused()
    assert done.code == 78
    told = done.stderr.splitlines()
    assert [line.removeprefix("durablefuture-supervisor: supervisor.toml:").partition(": ")[0] for line in told] == [
        "2",
        "3",
        "4",
        "8",
    ]
    unknown, missing, wrong_type, duplicate = told
    assert "[supervisor] namespce: unknown key; did you mean 'namespace'?" in unknown
    assert "[supervisor] modules: there is no module 'warehouse'" in missing
    assert "[supervisor] drain_timeout: expected a number of seconds" in wrong_type
    assert '"soon"' in wrong_type
    assert "[[activity_pool]] task_queue: the task queue 'gpu' has a pool already" in duplicate
    assert not (installation.directory / ".durablefuture").exists(), "nothing may be started with a wrong configuration"


async def test_the_command_refuses_the_same_configuration_in_the_same_words(installation: Installation) -> None:
    installation.configure("[supervisor]\nnamespce = 'default'\n")
    done = await installation.command("--config", "supervisor.toml", "list")
    assert done.code == 78
    assert "supervisor.toml:2: [supervisor] namespce: unknown key; did you mean 'namespace'?" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[supervisor\n", ["supervisor.toml:1", "not valid TOML"]),
        ("", ["[supervisor] modules", "is missing or empty"]),
        ("[supervisor]\nmodules = ['shop']\n[nats]\nurl = 'http://x'\n", ["supervisor.toml:4", "[nats] url"]),
        ("[supervisor]\nmodules = ['shop']\nroles = ['activities']\n", ["supervisor.roles", '"workflows"']),
    ],
    ids=["no TOML", "no modules", "url of something else", "no workflow role"],
)
async def test_a_configuration_that_cannot_work_is_refused(
    installation: Installation, text: str, words: list[str]
) -> None:
    installation.module("shop", WORKFLOW)
    installation.configure(text)
    done = await installation.refused()
    assert done.code == 78
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_configuration_that_is_not_there_is_told_from_wrong_usage(installation: Installation) -> None:
    missing = await installation.refused("--config", "nowhere.toml")
    assert missing.code == 78
    assert "nowhere.toml" in missing.stderr
    usage = await installation.refused("--confg", "supervisor.toml")
    assert usage.code == 2


async def test_a_variable_of_the_environment_that_is_wrong_is_named(installation: Installation) -> None:
    installation.module("shop", WORKFLOW)
    installation.configure("[supervisor]\nmodules = ['shop']\n")
    done = await installation.refused(DURABLEFUTURE_SANDBOX_PROCESSES="many")
    assert done.code == 78
    assert "DURABLEFUTURE_SANDBOX_PROCESSES" in done.stderr


# The line is that of the decorator, or of the statement.
WRONG_CODE = {
    "sync workflow": ("@workflow\ndef order() -> int:\n    return 1\n", "write `async def`", 2),
    "lambda": ("order = workflow(lambda: 1)\n", "does not go onto a lambda", 2),
    "generator": ("@activity\nasync def order():\n    yield 1\n", "is a generator", 2),
    "star arguments": ("@workflow\nasync def order(*args: int) -> None: ...\n", "take a list instead", 2),
    "keyword-only": ("@activity\nasync def order(*, a: int) -> None: ...\n", "parameter 'a' is keyword-only", 2),
    "method": (
        "class Shop:\n    @activity\n    def order(self) -> None: ...\n",
        "move the function to module level",
        3,
    ),
    "unknown option": ("@activity(timeout=3)\nasync def order() -> None: ...\n", "unknown option 'timeout'", 2),
    "option out of range": (
        "@activity(start_to_close_timeout=-1)\nasync def order() -> None: ...\n",
        "start_to_close_timeout must be above 0 seconds",
        2,
    ),
    "not encodable parameter": (
        "import threading\n@workflow\nasync def order(lock: threading.Event) -> None: ...\n",
        "workflow order, parameter 'lock': values of type",
        3,
    ),
    "not encodable result": (
        "import threading\n@activity\nasync def order() -> threading.Event: ...\n",
        "activity order",
        3,
    ),
    "unknown annotation": (
        "@workflow\nasync def order(a: 'Nowhere') -> None: ...\n",
        "name 'Nowhere' is not defined",
        2,
    ),
    "syntax error": ("1 +\n", "SyntaxError: invalid syntax (shop.py, line 2)", 2),
    "missing library": ("import no_such_library\n", "No module named 'no_such_library'", 2),
    "raises": ("1 / 0\n", "ZeroDivisionError: division by zero", 2),
}


@pytest.mark.parametrize("case", WRONG_CODE)
async def test_code_that_cannot_be_registered_is_refused_naming_module_and_line(
    installation: Installation, case: str
) -> None:
    source, words, line = WRONG_CODE[case]
    installation.module("shop", f"from durablefuture_trio import activity, workflow\n{source}")
    installation.configure("[supervisor]\nmodules = ['shop']\n")
    done = await installation.refused("--check")
    assert done.code == 78
    assert words in done.stderr
    assert any(f"shop{separator}{line}" in done.stderr for separator in (".py:", ".order:", ".py, line ")), done.stderr
    assert "Traceback" not in done.stderr


async def test_a_supervisor_ends_with_the_same_words_when_its_code_cannot_be_registered(
    installation: Installation,
) -> None:
    installation.module("shop", "from durablefuture_trio import workflow\n@workflow\ndef order(): ...\n")
    installation.module("stock", dedent(WORKFLOW))
    installation.module("depot", dedent(WORKFLOW))
    installation.configure("[supervisor]\nmodules = ['shop', 'stock', 'depot']\n")
    done = await installation.refused()
    assert done.code == 78
    told = [line for line in done.stderr.splitlines() if line.startswith("durablefuture-supervisor: ")]
    assert len(told) == 2
    assert "@workflow order is a plain def" in told[0]
    assert "shop.py:2" in told[0]
    assert "two workflows have the name order: stock.order:4 and depot.order:4" in told[1]
    assert "Traceback" not in done.stderr


async def test_an_option_that_has_no_effect_yet_is_told_so(installation: Installation) -> None:
    installation.module(
        "shop",
        WORKFLOW + "\n    from durablefuture_trio import activity\n"
        "    @activity(heartbeat_timeout=5, start_to_close_timeout=30)\n    async def pay() -> None: ...\n",
    )
    installation.configure("[supervisor]\nmodules = ['shop']\n")
    done = await installation.refused("--check")
    assert done.code == 0
    assert "heartbeat_timeout is accepted and has no effect in this version" in done.stderr
    assert "start_to_close_timeout" not in done.stderr
