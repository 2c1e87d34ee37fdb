"""The example programs and the commands of the README, run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_S = 90.0


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DURABLEFUTURE_")}
    environ["PATH"] = f"{sysconfig.get_path('scripts')}{os.pathsep}{environ['PATH']}"
    return subprocess.run(
        command,
        cwd=cwd,
        env={**environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_the_demo_kills_the_shipping_process_and_the_order_is_done_all_the_same(tmp_path: Path) -> None:
    done = run([sys.executable, str(ROOT / "examples/order/demo.py")], tmp_path, SHOP_PACE="0.3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "crashed: ProcessCrashed" in done.stdout
    assert "attempt 2 local" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_demo_fails_when_the_order_does_not_go_as_it_says(tmp_path: Path) -> None:
    lifeless = tmp_path / "order"
    shutil.copytree(ROOT / "examples/order", lifeless, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    shop = lifeless / "shop.py"
    # Two attempts at the card make two more events than there should be.
    original = shop.read_text()
    broken = original.replace(
        'if customer == "fail_customer":', 'if customer == "fail_customer" or activity.info().attempt == 1:'
    )
    assert broken != original
    shop.write_text(broken)
    done = run([sys.executable, str(lifeless / "demo.py")], tmp_path, SHOP_PACE="0.3")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "demo failed" in done.stderr


def test_the_embedded_example_takes_the_best_offer_of_the_first_second(tmp_path: Path) -> None:
    done = run([sys.executable, str(ROOT / "examples/embedded.py")], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "Offer(shop='department store', price=21.4)"
    assert "ActivityCancelled" in done.stdout
    assert lines[-1].endswith("WorkflowCompleted")


def test_the_approval_example_reminds_and_undoes_what_it_has_reserved_when_it_is_cancelled(tmp_path: Path) -> None:
    done = run([sys.executable, str(ROOT / "examples/approval.py")], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    chair, sofa = done.stdout.split("a sofa\n")
    assert "ValueError: 400.00 is not less than 300.00" in chair
    assert "saved 50.00" in chair
    assert chair.endswith("250.00 for a chair, approved by Ann\n")
    assert sofa == "  cancelled: the office moves\n"
    # What activities print comes with the log.
    assert "reminder: please decide about a chair" in done.stderr
    assert "released the reservation of 900.00" in done.stderr
    assert "released the reservation of 300.00" not in done.stderr


def test_the_catalogue_example_leaves_out_the_page_with_too_many_failures(tmp_path: Path) -> None:
    done = run([sys.executable, str(ROOT / "examples/catalogue.py")], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    stored, left_out, history = done.stdout.splitlines()
    assert stored == "539 products stored, 11 refused"
    assert left_out.startswith("page 7: child workflow 'import_page'")
    # Of four pages, each initiated, started and completed: the two runs before it have histories of their own.
    assert history == "the last run's history has 14 events"


def test_the_subscription_example_goes_on_in_a_new_run_and_keeps_its_account(tmp_path: Path) -> None:
    done = run([sys.executable, str(ROOT / "examples/subscription.py")], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, ended, runs = done.stdout.splitlines()
    account = re.fullmatch(r"ended: Account\(customer='Bob', plan='large', periods=(\d+), paid=([\d.]+)\)", ended)
    assert account is not None
    periods, paid = int(account[1]), float(account[2])
    assert periods >= 5
    assert any(paid == small * 5.0 + (periods - small) * 20.0 for small in range(2, periods))
    begun = re.fullmatch(r"begun by run (\w+), ended by run (\w+) with \d+ events", runs)
    assert begun is not None
    assert begun[1] != begun[2]


@pytest.fixture
def order(tmp_path: Path) -> Path:
    """A copy of the order example, as a fresh clone has it."""
    directory = tmp_path / "order"
    shutil.copytree(ROOT / "examples/order", directory, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    return directory


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), flags=re.DOTALL)


PROGRAMS = blocks(ROOT / "README.md", "python")


def test_the_quickstart_of_the_readme_survives_kill_9_of_the_supervisor(order: Path) -> None:
    (quickstart,) = [block for block in blocks(ROOT / "README.md", "sh") if "kill -9" in block]
    script = f"set -eu\ntrap 'kill -TERM $! && wait' EXIT\n{quickstart}"
    done = run(["bash", "-c", script], order)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"carrier": "FastShip Express"' in done.stdout
    words = [line.split()[3] for line in done.stdout.splitlines() if re.match(r"\d+ +\d{4}-", line)]
    assert words == [
        "WorkflowStarted",
        "ActivityScheduled",
        "ActivityStarted",
        "ActivityCompleted",
        "ActivityScheduled",
        "ActivityFailed",  # lost with its supervisor
        "ActivityScheduled",
        "ActivityStarted",
        "ActivityCompleted",
        "WorkflowCompleted",
    ]


@pytest.mark.parametrize(
    ("workflow", "output"),
    [
        ("async def order(", "['Bob paid 1000.00', 'tracking_id of widget-1000']\n"),
        ("class Approval:", "waiting\na chair: approved by Ann\n"),
    ],
)
def test_each_program_shown_in_the_readme_runs(tmp_path: Path, workflow: str, output: str) -> None:
    (program,) = [block for block in PROGRAMS if workflow in block]
    (tmp_path / "program.py").write_text(program)
    done = run([sys.executable, "program.py"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == output


def test_no_block_of_the_readme_is_left_out() -> None:
    fences = re.findall(r"^```(\w+)\n", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(fences) == ["python", "python", "sh"]


DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_between_the_documents_leads_somewhere(document: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose)
    missing = [target for target in targets if "://" not in target and not (document.parent / target).exists()]
    assert missing == []
