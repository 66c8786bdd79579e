"""What is wrong on a machine, as `smalti doctor` tells it: one finding for each thing that Smalti needs."""

from smalti.doctor.finding import Finding, State
from smalti.doctor.machine import examine_machine
from smalti.doctor.services import examine_services

__all__ = ["Finding", "State", "examine_machine", "examine_services"]
