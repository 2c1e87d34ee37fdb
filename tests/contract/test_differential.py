"""The model in memory and a real nats-server, side by side: the same random operations give the same answers."""

from __future__ import annotations

from random import Random

import pytest

from tests.contract.differential import TooSlow, open_pair
from tests.contract.random_walk import Walk

STEPS = 60


@pytest.mark.parametrize("seed", [9, 15, 29])
async def test_the_model_and_the_server_give_the_same_answers_to_the_same_random_operations(seed: int) -> None:
    for slack_s in (1.0, 3.0, 9.0):
        async with open_pair() as pair:
            try:
                await Walk(pair, Random(seed), slack_s).run(STEPS)
            except TooSlow:
                continue  # the machine was too busy for these times: again with longer ones
            return
    pytest.fail("this machine is too slow to compare what happens at a time")
