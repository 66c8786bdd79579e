"""The account of batches: what was submitted, what has become of it, and what is wrong with it."""

from faults.batches.account import BatchAccount
from faults.batches.output import read_output
from faults.batches.submissions import CANDIDATES, SHARD_PROMPTS, BatchSubmission

__all__ = ["CANDIDATES", "SHARD_PROMPTS", "BatchAccount", "BatchSubmission", "read_output"]
