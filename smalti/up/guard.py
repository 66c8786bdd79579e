"""Runs a command that dies with the process that asked for it: `python guard.py PARENT USER COMMAND...`.

It is a script of its own, and imports nothing of Smalti, so that it is there in a few milliseconds.
"""

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Becomes the command."""
    parent, user, *command = sys.argv[1:]
    if user:
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    # After the change of user, which takes the signal back. A stopped process does not hear a softer one.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the process that asked for this one has ended already")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
