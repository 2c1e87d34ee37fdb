"""An order: charge the card, then ship the package. It survives the death of any process."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import trio

from durablefuture_trio import ActivityError, ApplicationError, RetryPolicy, activity, workflow

PACE = float(os.environ.get("SHOP_PACE", "1"))
"""Factor on the seconds the activities take, so that they can be played faster."""


@dataclass
class Charge:
    """A paid charge."""

    charge_id: str
    amount: float


@dataclass
class Shipment:
    """A package on its way."""

    tracking_id: str
    carrier: str
    estimated_delivery: datetime


@dataclass
class Receipt:
    """What the customer gets."""

    charged_amount: float
    tracking_id: str
    carrier: str
    estimated_delivery: datetime
    charge_id: str


@activity(
    retry_policy=RetryPolicy(
        initial_interval=1.0,
        backoff_coefficient=2.0,
        maximum_interval=30.0,
        maximum_attempts=3,
        non_retryable_error_types=("invalid card", "insufficient funds"),
    ),
    schedule_to_close_timeout=300,
    start_to_close_timeout=30,
)
async def charge_credit_card(customer: str, amount: float) -> Charge:
    """Takes two seconds. The customer ``fail_customer`` is declined, three times."""
    activity.logger.info("charging %s %.2f, attempt %d", customer, amount, activity.info().attempt)
    await trio.sleep(2 * PACE)
    if customer == "fail_customer":
        raise ApplicationError("credit card declined")
    # A real payment service is given the idempotency key: it is the same in all attempts of this call.
    key = activity.info().idempotency_key
    return Charge(charge_id=f"ch_{uuid.uuid5(uuid.NAMESPACE_OID, key).hex[:12]}", amount=amount)


@activity(
    retry_policy=RetryPolicy(
        initial_interval=1.0,
        backoff_coefficient=1.5,
        maximum_interval=60.0,
        maximum_attempts=5,
        non_retryable_error_types=("address invalid",),
    ),
    schedule_to_close_timeout=600,
    start_to_close_timeout=60,
)
def ship_package(customer: str, product: str, quantity: int, charge_id: str) -> Shipment:
    """Takes three seconds, in a thread: a plain ``def`` may block."""
    attempt = activity.info().attempt
    activity.logger.info("shipping %d x %s, attempt %d in process %d", quantity, product, attempt, os.getpid())
    time.sleep(3 * PACE)
    return Shipment(
        tracking_id=f"trk_{uuid.uuid4().hex[:10]}",
        carrier="FastShip Express",
        estimated_delivery=datetime.now(UTC) + timedelta(days=3),
    )


@workflow
async def order(customer: str, product: str, amount: float, quantity: int) -> Receipt:
    """Charge, then ship."""
    try:
        charge = await charge_credit_card(customer, amount)
    except ActivityError as error:
        raise ApplicationError(f"credit card charge failed: {error.cause}") from error
    shipment = await ship_package(customer, product, quantity, charge.charge_id)
    return Receipt(
        charged_amount=charge.amount,
        tracking_id=shipment.tracking_id,
        carrier=shipment.carrier,
        estimated_delivery=shipment.estimated_delivery,
        charge_id=charge.charge_id,
    )
