"""The application whose processes the chaos tests kill. Every attempt leaves a witness."""

from __future__ import annotations

import time
from dataclasses import dataclass

import trio

from durablefuture_trio import RetryPolicy, activity, workflow
from tests._support.witnesses import directory, gate_path, witnessed

QUICK_RETRY = RetryPolicy(initial_interval=0.2, backoff_coefficient=1.5, maximum_interval=1.0)
GATE_LOOK_S = 0.01


@dataclass
class Charge:
    charge_id: str
    amount: float


@dataclass
class Shipment:
    tracking_id: str
    attempt: int


@dataclass
class Receipt:
    charged_amount: float
    charge_id: str
    tracking_id: str
    shipped_by_attempt: int


@activity(retry_policy=RetryPolicy(initial_interval=0.2, maximum_attempts=3), start_to_close_timeout=30)
async def charge_credit_card(customer: str, amount: float) -> Charge:
    with witnessed():
        await trio.sleep(0.05)
        return Charge(charge_id=f"ch_{customer}", amount=amount)


@activity(retry_policy=RetryPolicy(initial_interval=0.2, maximum_attempts=5), start_to_close_timeout=60)
def ship_package(charge: Charge, gate: str) -> Shipment:
    """A plain function that blocks its thread until the gate is open."""
    with witnessed():
        while not gate_path(directory(), gate).exists():
            time.sleep(GATE_LOOK_S)
        return Shipment(tracking_id=f"trk_{charge.charge_id}", attempt=activity.info().attempt)


@workflow
async def order(customer: str, amount: float, gate: str) -> Receipt:
    """Charge, then ship."""
    charge = await charge_credit_card(customer, amount)
    shipment = await ship_package(charge, gate)
    return Receipt(charge.amount, charge.charge_id, shipment.tracking_id, shipment.attempt)


@activity(retry_policy=QUICK_RETRY)
async def step(number: int, seconds: float) -> int:
    with witnessed():
        await trio.sleep(seconds)
        return number * 3 + 1


@activity(retry_policy=QUICK_RETRY)
def blocking_step(number: int, seconds: float) -> int:
    with witnessed():
        time.sleep(seconds)
        return number * 3 + 1


@activity(retry_policy=QUICK_RETRY)
async def gated_step(number: int, gate: str) -> int:
    """Runs until the gate is open."""
    with witnessed():
        while not gate_path(directory(), gate).exists():  # noqa: ASYNC110 - the test and this process share only files
            await trio.sleep(GATE_LOOK_S)
        return number * 3 + 1


def chain_result(seed: int, steps: int) -> list[int]:
    """What `chain` has to return."""
    values = [seed]
    for _ in range(steps):
        values.append(values[-1] * 3 + 1)
    return values


@workflow
async def chain(seed: int, steps: int, seconds: float) -> list[int]:
    """One step after the other, every other one in a thread."""
    values = [seed]
    for number in range(steps):
        values.append(await (blocking_step if number % 2 else step)(values[-1], seconds))
    return values


@workflow
async def gated(seed: int, gate: str) -> list[int]:
    """A step, a step that waits at the gate, a step."""
    values = [seed]
    values.append(await step(values[-1], 0.0))
    values.append(await gated_step(values[-1], gate))
    values.append(await step(values[-1], 0.0))
    return values


@workflow
async def nap(seed: int, seconds: float) -> list[int]:
    """A step, a sleep, a step."""
    values = [seed, await step(seed, 0.0)]
    await trio.sleep(seconds)
    return [*values, await step(values[-1], 0.0)]


@workflow
async def napping_chain(seed: int, steps: int, seconds: float, nap_seconds: float) -> list[int]:
    """A sleep after each step."""
    values = [seed]
    for number in range(steps):
        values.append(await (blocking_step if number % 2 else step)(values[-1], seconds))
        await trio.sleep(nap_seconds)
    return values


@workflow
async def nap_then_gated(seed: int, seconds: float, gate: str) -> list[int]:
    """A step, a sleep, a step that waits at the gate."""
    values = [seed, await step(seed, 0.0)]
    await trio.sleep(seconds)
    return [*values, await gated_step(values[-1], gate)]
