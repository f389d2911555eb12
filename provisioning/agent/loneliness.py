"""A process without a network: in a namespace of its own, with nothing in it but a loopback of its own.

The namespace of users beside it gives the right to make one without being root,
and takes from root the right to go back.
"""

import ctypes
import fcntl
import os
import socket
import struct
from functools import lru_cache
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
LOOPBACK = b"lo"


def leave_network() -> None:
    """Take this process, which must have one thread, out of the machine's network for good. Raises OSError."""
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"no network of its own: {os.strerror(number)}")
    # It stays who it is, and files stay whose they are.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _raise_loopback()


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        asked = struct.pack("16sH14s", LOOPBACK, 0, b"")
        flags = struct.unpack("16sH14s", fcntl.ioctl(handle, SIOCGIFFLAGS, asked))[1]
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sH14s", LOOPBACK, flags | IFF_UP, b""))


@lru_cache(maxsize=1)
def why_not_alone() -> str:
    """Return why this machine gives no process a network of its own, or nothing; tried out once, in a child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            leave_network()
        except OSError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    os.waitpid(pid, 0)
    return f"this node cannot run anything without a network: {said}" if said else ""
