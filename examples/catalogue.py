"""An import of many products: a map that stands some failures, child workflows, and a history that stays short.

The supplier's catalogue has 12 pages of 50 products. Each page is a child workflow, which stores its products ten at a
time; after every four pages the import continues as new, so that its history never grows with the catalogue. Run it
with ``python examples/catalogue.py``; the NATS server keeps its files in ``.durablefuture`` of the working directory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from durablefuture_trio import (
    ActivityError,
    ApplicationError,
    activity,
    durable_map,
    open_supervisor,
    workflow,
)

PAGES = 12
PAGES_PER_RUN = 4


@dataclass
class Report:
    """What has become of the products so far."""

    stored: int = 0
    refused: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@activity
async def fetch_page(page: int) -> list[str]:
    """The products of one page. Page 7 is damaged beyond repair."""
    return [f"{'?' if page == 7 or number == 13 else ''}product {page}-{number}" for number in range(50)]


@activity
async def store(product: str) -> None:
    """Write one product into the database; safe to repeat."""
    if product.startswith("?"):
        raise ApplicationError(f"{product} is not readable", non_retryable=True)


@workflow
async def import_page(page: int) -> Report:
    """Store the products of a page. If more than a tenth of them is refused, the page itself must be wrong."""
    products = await fetch_page(page)
    outcomes = await durable_map(store, products, concurrency=10, tolerate=0.1)
    refused = [product for product, it in zip(products, outcomes, strict=True) if isinstance(it, ActivityError)]
    return Report(stored=len(products) - len(refused), refused=refused)


@workflow
async def import_catalogue(first: int, report: Report) -> Report:
    """Import the pages from `first` on; `report` is what the runs before this one have done."""
    end = min(first + PAGES_PER_RUN, PAGES)
    for page, outcome in enumerate(await durable_map(import_page, range(first, end), tolerate="all"), start=first):
        if isinstance(outcome, Report):
            report.stored += outcome.stored
            report.refused += outcome.refused
        else:
            report.left_out.append(f"page {page}: {outcome}")
    if end < PAGES:
        workflow.continue_as_new(end, report)
    return report


async def main() -> None:
    async with open_supervisor(workflows=[import_catalogue, import_page], activities=[fetch_page, store]) as supervisor:
        catalogue = await supervisor.client.start(import_catalogue, 0, Report())
        report = await catalogue.result()
        last = await supervisor.client.handle(catalogue.id).describe()
        print(f"{report.stored} products stored, {len(report.refused)} refused")
        print(*report.left_out, sep="\n")
        print(f"the last run's history has {last.history_length} events")


if __name__ == "__main__":
    trio.run(main)
