"""Serves the files of one workload by SFTP: `python -m provisioning.agent.sftp folder PATH [VOLUME ...]`,
`container PID PATH`.

The gateway starts one for each SFTP session and hands the client's bytes through. Before it reads a byte of them, this
process goes where it cannot leave: into the work folder of a process, or into the mount namespace and root of a
container, so that any image works and no link and no `..` leads out. There it keeps the container's user, of root's
powers only those over files (and only those that the container has), and can gain none.

A process has links to its volumes, which lead out of its work folder. In a mount namespace of our own the volumes
themselves lie where those links lead first, so that they are reached at their paths as in a container.

A process of its own, because setns(2) and chroot(2) change a whole process, and the first must precede any thread.
"""

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from provisioning.agent.sftp_server import HANDLES_MAX, Server

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
SYS_CHROOT = 18
DOORS = ".volumes"  # As `volumes.link_into` makes it; that is not imported, because this process is to start fast.
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
CAPABILITY_VERSION_3 = 0x20080522
CHOWN, DAC_OVERRIDE, FOWNER, FSETID = 0, 1, 3, 4
OVER_FILES = sum(1 << name for name in (CHOWN, DAC_OVERRIDE, FOWNER, FSETID))
CAPABILITIES = 64

libc = ctypes.CDLL(None, use_errno=True)


class CannotEnter(Exception):
    """The place of the files cannot be reached, so nothing is served."""


def main(arguments: list[str]) -> int:
    """Enter, and serve standard input until it ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (HANDLES_MAX + 64, HANDLES_MAX + 64))
    try:
        match arguments:
            case ["folder", path, *volumes]:
                enter_folder(Path(path), [Path(volume) for volume in volumes])
            case ["container", pid, path]:
                enter_container(int(pid), Path(path))
            case _:
                raise CannotEnter("usage: folder PATH [VOLUME ...] | container PID PATH")
    except (OSError, ValueError, CannotEnter) as error:
        sys.stderr.write(f"gpumarket: the files cannot be reached: {error}\n")
        return 1
    os.umask(0o022)
    Server(read=read_whole, write=write_whole).run()
    return 0


def enter_folder(folder: Path, volumes: Sequence[Path] = ()) -> None:
    """Make a folder, with the volumes that it has links to, the root of all that this process sees."""
    if not effective_capabilities() >> SYS_CHROOT & 1:
        # Without root, the right to do so is that of a user namespace of our own.
        user, group = os.getuid(), os.getgid()
        call(libc.unshare, CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    if volumes:
        with contextlib.suppress(PermissionError):  # No mounts for us here: the links lead nowhere, as without them.
            bring_in(volumes, folder)
    os.chroot(folder)
    os.chdir("/")
    keep_capabilities(OVER_FILES)


def bring_in(volumes: Sequence[Path], folder: Path) -> None:
    """Put volumes where the links of a working folder lead first, for this process alone.

    Whatever the customer made of that place: the mounts are in a namespace of ours, below the root that we then take
    they are seen, and elsewhere they change nothing for anybody. Where the customer removed it, or a volume is not on
    this node any more, the links lead nowhere, and all other files are served.
    """
    call(libc.unshare, CLONE_NEWNS)
    mount(None, Path("/"), flags=MS_REC | MS_PRIVATE)
    try:
        doors = os.open(folder / DOORS, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    place = Path(f"/proc/self/fd/{doors}")
    mount("tmpfs", place, kind="tmpfs", flags=MS_NOSUID | MS_NODEV)
    os.close(doors)
    for volume in filter(Path.is_dir, volumes):
        (folder / DOORS / volume.name).mkdir(mode=0o700)
        mount(str(volume), folder / DOORS / volume.name, flags=MS_BIND | MS_REC)
    mount(None, folder / DOORS, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def mount(source: str | None, target: Path, *, kind: str | None = None, flags: int) -> None:
    """Mount as mount(2) does."""
    words = [None if word is None else os.fsencode(word) for word in (source, str(target), kind)]
    call(libc.mount, *words, ctypes.c_ulong(flags), None)


def enter_container(pid: int, folder: Path) -> None:
    """Go where a container's first process is: its mounts, its root, its user; and there into a folder."""
    process = Path("/proc", str(pid))
    mounts = os.open(process / "ns/mnt", os.O_RDONLY)
    if os.path.samestat(os.fstat(mounts), os.stat("/proc/self/ns/mnt")):
        raise CannotEnter("it has no files of its own")  # Whatever has this pid now: it is no container.
    root = os.open(process / "root", os.O_PATH | os.O_DIRECTORY)
    facts = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    user = inside(int(facts["Uid"].split()[1]), (process / "uid_map").read_text())
    groups_map = (process / "gid_map").read_text()
    group, *groups = (inside(int(name), groups_map) for name in (facts["Gid"].split()[1], *facts["Groups"].split()))
    if os.readlink(process / "ns/user") != os.readlink("/proc/self/ns/user"):
        call(libc.setns, os.open(process / "ns/user", os.O_RDONLY), CLONE_NEWUSER)
    call(libc.setns, mounts, CLONE_NEWNS)
    os.fchdir(root)
    os.chroot(".")
    os.closerange(3, HANDLES_MAX + 64)
    os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)  # From here on a user other than root has no powers.
    keep_capabilities(OVER_FILES & int(facts["CapBnd"], 16))
    with contextlib.suppress(OSError):  # Not there, or not for this user: the root will do.
        os.chdir(folder)


def inside(number: int, mapped: str) -> int:
    """Return what a user or group of ours is called in a namespace with this map (user_namespaces(7))."""
    for line in mapped.splitlines():
        first, ours, count = map(int, line.split())
        if ours <= number < ours + count:
            return first + number - ours
    raise CannotEnter(f"its namespace does not know {number}")


def keep_capabilities(wanted: int) -> None:
    """Give up all of root's powers but these (bits as in capabilities(7)), and the way to any others."""
    kept = wanted & effective_capabilities()
    for name in range(CAPABILITIES):
        if not kept >> name & 1:
            libc.prctl(PR_CAPBSET_DROP, name, 0, 0, 0)  # Not allowed without powers, and then not needed.
    call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    call(libc.capset, header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))


def effective_capabilities() -> int:
    """Return the powers that this process has, as bits."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    found = (ctypes.c_uint32 * 6)()
    call(libc.capget, header, found)
    return int(found[0]) | int(found[3]) << 32


def call(function: Callable[..., int], *arguments: object) -> None:
    """Call the C library; raises OSError with its reason."""
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def read_whole(length: int) -> bytes:
    """Return the next bytes of standard input, fewer only at its end."""
    parts = []
    while length:
        part = os.read(0, length)
        if not part:
            break
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def write_whole(data: bytes) -> None:
    """Write all of it to standard output."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except BrokenPipeError:
        code = 0  # The client hung up.
    os._exit(code)  # Nothing of Python's own end may look for files in here.
