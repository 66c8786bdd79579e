"""Runs a command that dies with the process that started it: `python guard.py PARENT USER COMMAND...`.

A script of its own that imports nothing of Smalti, so that it starts in a few milliseconds.
"""

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replaces this process by the command."""
    parent, user, *command = sys.argv[1:]
    if user:
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    # After the change of user, which clears it. SIGKILL, since a stopped process does not receive other signals.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the parent process has ended already")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
