"""What all rows about batches share."""

from collections.abc import Sequence
from typing import Final

SETTINGS: Final = {
    "SMALTI_MESSAGES_WRITE": "3",
    "SMALTI_SERVICE_HELLO": "1",
    # Short, so that lost work is detected soon.
    "SMALTI_GATEWAY_SHARD_LEASE": "15",
}


def prompts_of(name: str, count: int) -> Sequence[str]:
    """Returns different prompts."""
    return [f"{name} picture {number}" for number in range(count)]
