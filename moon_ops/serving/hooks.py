"""MLflow's webhooks: a signed word that an alias has moved, so that the service asks the registry now and not some seconds later.

It is a hint alone. What is to be served the registry says, which is asked every few seconds whether a hint comes or not; so one that is
lost, late or sent again changes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping

PATH = "/v1/hooks/mlflow"
MOST_BYTES = 64 * 2**10  # of a body: MLflow's have some hundred
AGE_SECONDS = 300  # that a word may be old, or lie ahead where clocks differ
DIGITS = 12  # of a Unix time
SIGNATURE, TIMESTAMP, DELIVERY = "X-MLflow-Signature", "X-MLflow-Timestamp", "X-MLflow-Delivery-Id"  # MLflow's own names


def is_signed(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Whether who knows the ``secret`` has sent this within :data:`AGE_SECONDS` of ``now`` (Unix time).

    MLflow signs ``delivery.timestamp.body`` with HMAC-SHA256 and sends ``v1,`` and the signature in base64.
    """
    stamp, delivery, given = (headers.get(name, "") for name in (TIMESTAMP, DELIVERY, SIGNATURE))
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= DIGITS) or abs(now - int(stamp)) > AGE_SECONDS:
        return False
    signed = hmac.new(secret.encode(), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return hmac.compare_digest(f"v1,{base64.b64encode(signed).decode()}".encode(), given.encode())
