"""Becomes a command that a customer runs by SSH: `python terminal.py tty|pipes FILES COMMAND...`.

Started in a session of its own; it may have FILES open files. With `tty`, standard input becomes its terminal. When
the agent dies, it is hung up, as when a line drops; what ignores that (tmux, nohup) goes on. Nothing is imported that
the customer's variables could choose: the interpreter runs isolated, and the environment that it hands on is the
command's own.
"""

import ctypes
import fcntl
import os
import resource
import signal
import sys
import termios

PR_SET_PDEATHSIG = 1
NOT_FOUND, NOT_STARTED = 127, 126


def main(arguments: list[str]) -> int:
    """Become the command; return only where that cannot be."""
    kind, files, *command = arguments
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGHUP, 0, 0, 0)
    if kind == "tty":
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)  # An exec would keep what Python or our own parents ignore.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        os.execvp(command[0], command)  # noqa: S606  it is what the customer asked for
    except FileNotFoundError:
        code = NOT_FOUND
    except OSError:
        code = NOT_STARTED
    sys.stderr.write(f"gpumarket: cannot run {command[0]!r}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
