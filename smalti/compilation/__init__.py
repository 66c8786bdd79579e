"""Compiled programs that are kept between processes, so that a start traces and compiles nothing.

A program is read from a file, which is machine code: the folder must belong to the user and be writable by nobody else.
"""

from smalti.compilation.cache import use_compilation_cache
from smalti.compilation.program import PROGRAM_READ, Program, kept_shapes, program

__all__ = ["PROGRAM_READ", "Program", "kept_shapes", "program", "use_compilation_cache"]
