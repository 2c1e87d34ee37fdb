"""Member slots: one process each, the lowest free one first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from durablefuture_trio.errors import ConfigError
from durablefuture_trio.supervisor._identity import member_slot

HOLD_A_SLOT = """
import sys
from durablefuture_trio.supervisor._identity import member_slot
with member_slot(sys.argv[1]) as member:
    print(member.name, member.token, flush=True)
    sys.stdin.read()
"""


def hold_slot(directory: Path) -> tuple[subprocess.Popen[str], str, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_SLOT, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    name, token = process.stdout.readline().split()
    return process, name, token


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_two_processes_get_two_slots_and_a_killed_one_leaves_its_slot_and_token_to_the_next(tmp_path: Path) -> None:
    directory = tmp_path / "namespaces" / "default"
    first, first_name, first_token = hold_slot(directory)
    second, second_name, second_token = hold_slot(directory)
    try:
        assert "-m0-" in first_name
        assert "-m1-" in second_name
        assert first_token != second_token
        end(first)
        with member_slot(str(directory)) as member:
            assert (member.name, member.token) == (first_name, first_token)
            lock = directory / "member-0.lock"
            assert lock.read_text() == f"{os.getpid()}\n"
    finally:
        end(first)
        end(second)


def test_every_holding_of_a_slot_is_another_incarnation_of_the_same_member(tmp_path: Path) -> None:
    with member_slot(str(tmp_path)) as first:
        pass
    with member_slot(str(tmp_path)) as second:
        assert (second.name, second.token) == (first.name, first.token)
        assert second.incarnation != first.incarnation


def test_the_token_is_for_its_owner_alone_and_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    with member_slot(str(tmp_path)) as member:
        token = tmp_path / "member-0.token"
        assert token.stat().st_mode & 0o777 == 0o600
    token.write_text(member.token[:10])
    with member_slot(str(tmp_path)) as another:
        assert another.token != member.token
        assert token.read_text().strip() == another.token


def test_a_directory_that_cannot_be_used_is_a_problem_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be used: .*state_dir"), member_slot(str(tmp_path / "file" / "x")):
        pass
