"""Compiled programs that are kept between processes, so that a start traces and compiles nothing.

A program is read from a file, which is machine code: the folder must belong to the user and be writable by nobody else.
Programs can also be compiled ahead, for devices that are not there.
"""

from smalti.compilation.ahead import Ahead, Memory, backend, compiling_ahead, device_bytes, devices, put
from smalti.compilation.bundle import BundleWriter, ProgramEntry
from smalti.compilation.cache import use_compilation_cache
from smalti.compilation.program import PROGRAM_READ, Program, kept_shapes, program
from smalti.compilation.target import code_digest
from smalti.compilation.topology import find_topology

__all__ = [
    "PROGRAM_READ",
    "Ahead",
    "BundleWriter",
    "Memory",
    "Program",
    "ProgramEntry",
    "backend",
    "code_digest",
    "compiling_ahead",
    "device_bytes",
    "devices",
    "find_topology",
    "kept_shapes",
    "program",
    "put",
    "use_compilation_cache",
]
