"""A generator in several processes: a leader that takes the work, and followers that make the same calls to JAX."""

from smalti.services.generator.group.common import common_values
from smalti.services.generator.group.follower import Follower
from smalti.services.generator.group.leader import Leader, end_process
from smalti.services.generator.group.leading_batch import LeadingBatch

__all__ = ["Follower", "Leader", "LeadingBatch", "common_values", "end_process"]
