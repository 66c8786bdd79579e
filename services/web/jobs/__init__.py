"""Jobs for which a client waits: following them, telling about them, and what happens when the client goes away or asks
again."""

from smalti.services.web.jobs import following, sse
from smalti.services.web.jobs.attendance import Attendance
from smalti.services.web.jobs.repeats import LABEL, Repeats, is_retry, request_id_of
from smalti.services.web.jobs.wall import Walls

__all__ = ["LABEL", "Attendance", "Repeats", "Walls", "following", "is_retry", "request_id_of", "sse"]
