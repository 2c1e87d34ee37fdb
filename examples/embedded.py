"""The whole system inside one program: NATS, replay and activity processes start and end with a block.

Asks three shops for a price at the same time, and takes the best of the offers that come within a second. Run it with
``python examples/embedded.py``; the NATS server keeps its files in ``.durablefuture`` of the working directory.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from durablefuture_trio import RetryPolicy, activity, open_supervisor, workflow

SECONDS_TO_ANSWER = {"corner shop": 0.1, "department store": 0.3, "bazaar": 30.0}


@dataclass
class Offer:
    """What a shop wants for a product."""

    shop: str
    price: float


@activity(retry_policy=RetryPolicy(maximum_attempts=3), start_to_close_timeout=60)
async def ask(shop: str, product: str) -> Offer:
    """Ask one shop; some take their time."""
    await trio.sleep(SECONDS_TO_ANSWER[shop])
    return Offer(shop, price=round(20 - len(shop) / 10 + len(product), 2))


@workflow
async def best_offer(product: str, shops: list[str]) -> Offer:
    """The lowest price among the offers of the first second."""
    offers: list[Offer] = []

    async def collect(shop: str) -> None:
        offers.append(await ask(shop, product))

    with trio.move_on_after(1.0):  # a durable timeout; what has not answered is cancelled
        async with trio.open_nursery() as nursery:
            for shop in shops:
                nursery.start_soon(collect, shop)
    return min(offers, key=lambda offer: offer.price)


async def main() -> None:
    """Run the workflow once, and look at its history."""
    async with open_supervisor(workflows=[best_offer], activities=[ask]) as supervisor:
        handle = await supervisor.client.start(best_offer, "tea", list(SECONDS_TO_ANSWER))
        print(await handle.result())
        for event in await handle.history():
            print(f"{event.id:3}  {event.type}")


if __name__ == "__main__":
    trio.run(main)
