"""An expense that waits for an approval: a signal, a query, an update, reminders, and what is undone at a cancel.

The budget is reserved before anybody is asked, and released again when the expense is turned down, when the workflow is
cancelled, or when anything fails. Run it with ``python examples/approval.py``; the NATS server keeps its files in
``.durablefuture`` of the working directory.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from durablefuture_trio import (
    ApplicationError,
    UpdateRejectedError,
    WorkflowCancelledError,
    activity,
    open_supervisor,
    workflow,
)
from durablefuture_trio.client import Client

REMIND_EVERY_S = 0.5  # a day or two, where people are to be reminded


@dataclass
class Status:
    """Where an expense stands."""

    amount: float
    reminders: int
    approver: str | None


@activity
async def reserve_budget(purpose: str, amount: float) -> str:
    """Set the money aside; gives the number of the reservation."""
    print(f"  {amount:.2f} reserved for {purpose}", flush=True)
    return f"reservation of {amount:.2f}"


@activity
async def release_budget(reservation: str) -> None:
    """Undo a reservation. Safe to repeat, as everything should be that may run more than once."""
    print(f"  released the {reservation}", flush=True)


@activity
async def remind(purpose: str) -> None:
    """Write to whoever has to decide."""
    print(f"  reminder: please decide about {purpose}", flush=True)


@workflow
class Expense:
    """Waits for `decide`, and reminds of it. Its methods are what can be sent to a run."""

    def __init__(self) -> None:
        self.amount = 0.0
        self.approver: str | None = None
        self.is_approved = False
        self.reminders = 0

    async def run(self, purpose: str, amount: float) -> str:
        self.amount = amount
        reservation = await reserve_budget(purpose, amount)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.keep_reminding, purpose)
                await workflow.wait_until(lambda: self.approver)
                nursery.cancel_scope.cancel()
            if not self.is_approved:
                raise ApplicationError(f"{self.approver} has turned it down", type="TurnedDown")
        except BaseException:  # a failure or a cancel: the code below runs to its end, and then that goes on
            with trio.CancelScope(shield=True):
                await release_budget(reservation)
            raise
        return f"{self.amount:.2f} for {purpose}, approved by {self.approver}"

    async def keep_reminding(self, purpose: str) -> None:
        while True:
            await trio.sleep(REMIND_EVERY_S)
            await remind(purpose)
            self.reminders += 1

    @workflow.signal
    def decide(self, approver: str, is_approved: bool) -> None:
        self.approver, self.is_approved = approver, is_approved

    @workflow.query
    def status(self) -> Status:
        return Status(self.amount, self.reminders, self.approver)

    @workflow.update
    def lower(self, amount: float) -> float:
        saved, self.amount = self.amount - amount, amount
        return saved

    @lower.validator
    def check_lower(self, amount: float) -> None:
        if not 0 < amount < self.amount:
            raise ValueError(f"{amount:.2f} is not less than {self.amount:.2f}")


async def approved(client: Client) -> None:
    """An expense that is lowered, and approved after a reminder."""
    print("a chair")
    expense = await client.start(Expense, "a chair", 300.0)
    while not (await expense.query(Expense.status)).reminders:  # noqa: ASYNC110 - it is another process that reminds
        await trio.sleep(0.1)
    try:
        await expense.update(Expense.lower, 400.0)
    except UpdateRejectedError as refused:
        print(f"  {refused}")
    print(f"  saved {await expense.update(Expense.lower, 250.0):.2f}")
    print(f"  {await expense.query(Expense.status)}")
    await expense.signal(Expense.decide, "Ann", True)
    print(f"  {await expense.result()}")


async def cancelled(client: Client) -> None:
    """An expense that is not needed any more: cancelled while it waits for Ann."""
    print("a sofa")
    expense = await client.start(Expense, "a sofa", 900.0)
    await expense.cancel("the office moves")
    try:
        await expense.result()
    except WorkflowCancelledError as error:
        print(f"  cancelled: {error.reason}")


async def main() -> None:
    async with open_supervisor(workflows=[Expense], activities=[reserve_budget, release_budget, remind]) as supervisor:
        await approved(supervisor.client)
        await cancelled(supervisor.client)


if __name__ == "__main__":
    trio.run(main)
