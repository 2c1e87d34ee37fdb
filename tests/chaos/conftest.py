"""Fixtures of the tests that kill processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests._support.chaos import Chaos


@pytest.fixture
async def chaos(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Chaos]:
    """What a test kills; shows the supervisors' logs when it fails."""
    world = Chaos(tmp_path)
    try:
        yield world
    finally:
        try:
            await world.close()
        finally:
            request.node.add_report_section("call", "supervisors", world.logs)
