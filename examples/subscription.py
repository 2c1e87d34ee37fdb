"""A subscription that may run for years: a loop with signals, in a history that stays short.

Each period is paid in advance; the plan can be changed and the subscription be ended at any time. When its history gets
long the workflow continues as new: what it has to remember are its arguments, and signals that come meanwhile are not
lost. Run it with ``python examples/subscription.py``; the NATS server keeps its files in ``.durablefuture`` of the
working directory.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from durablefuture_trio import activity, open_supervisor, workflow
from durablefuture_trio.client import WorkflowHandle

PERIOD_S = 0.25  # a month, for customers
LONG_HISTORY = 15  # events; programs that run for years leave it to `workflow.info().continue_as_new_suggested`
PRICES = {"small": 5.0, "large": 20.0}


@dataclass
class Account:
    """All there is to know about a subscription, between two periods."""

    customer: str
    plan: str
    periods: int = 0
    paid: float = 0.0


@activity
async def charge(customer: str, amount: float) -> None:
    """Here a payment service would be given `activity.info().idempotency_key`, so that no period is paid twice."""
    activity.logger.info("%s pays %.2f", customer, amount)


@workflow.signal
def change_plan(plan: str) -> None:
    """From the next period on."""


@workflow.signal
def end() -> None:
    """Nothing is charged any more."""


@workflow.query
def account() -> Account:
    """Where the subscription stands."""
    raise NotImplementedError  # each run answers itself


@workflow
async def subscription(state: Account) -> Account:
    """Charge for each period, until the customer ends it."""
    is_ended = False

    @change_plan.handler
    def on_change_plan(plan: str) -> None:
        state.plan = plan

    @end.handler
    def on_end() -> None:
        nonlocal is_ended
        is_ended = True

    @account.handler
    def on_account() -> Account:
        return state

    while not is_ended:
        if workflow.info().history_length >= LONG_HISTORY:
            workflow.continue_as_new(state)
        price = PRICES[state.plan]
        await charge(state.customer, price)
        state.periods += 1
        state.paid += price
        with trio.move_on_after(PERIOD_S):
            await workflow.wait_until(lambda: is_ended)
    return state


async def periods_paid(handle: WorkflowHandle[Account], periods: int) -> None:
    """Wait until so many periods are paid."""
    while (state := await handle.query(account)).periods < periods:  # noqa: ASYNC110 - it is another process that pays
        await trio.sleep(0.05)
    print(state)


async def main() -> None:
    async with open_supervisor(workflows=[subscription], activities=[charge]) as supervisor:
        bob = await supervisor.client.start(subscription, Account("Bob", "small"))
        await periods_paid(bob, 2)
        await bob.signal(change_plan, "large")
        await periods_paid(bob, 5)
        await bob.signal(end)
        print("ended:", await bob.result())
        latest = await supervisor.client.handle(bob.id).describe()
        print(f"begun by run {bob.run_id}, ended by run {latest.run_id} with {latest.history_length} events")


if __name__ == "__main__":
    trio.run(main)
