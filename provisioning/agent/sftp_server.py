"""Speaks SFTP version 3 over two pipes, for the files that this process can see: draft-ietf-secsh-filexfer-02.

A server of our own, because of where it runs: inside a customer's root, with eyes for nothing but files. It looks up no
names of users, imports nothing late and so never loads a library or a table that the customer may have put there.
Names are bytes, owners are numbers. The extensions are those of OpenSSH (PROTOCOL, section 4) that its clients use.
"""

import errno
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

Opened = TypeVar("Opened")

VERSION = 3
PACKET_MAX = 256 << 10
DATA_MAX = PACKET_MAX - 1024
HANDLES_MAX = 256
NAMES_MAX = 100  # in one answer to READDIR
UNSET = (1 << 64) - 1

INIT, SERVER_VERSION = 1, 2
OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT, OPENDIR, READDIR, REMOVE, MKDIR, RMDIR, REALPATH, STAT = (
    range(3, 18)
)
RENAME, READLINK, SYMLINK = 18, 19, 20
STATUS, HANDLE, DATA, NAME, ATTRS = range(101, 106)
EXTENDED, EXTENDED_REPLY = 200, 201
OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE, UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8
HAS_SIZE, HAS_OWNER, HAS_MODE, HAS_TIMES = 1, 2, 4, 8
FOR_READ, FOR_WRITE, FOR_APPEND, MAKE, EMPTY, ONLY_NEW = 1, 2, 4, 8, 16, 32

EXTENSIONS = {
    b"posix-rename@openssh.com": b"1",
    b"hardlink@openssh.com": b"1",
    b"fsync@openssh.com": b"1",
    b"statvfs@openssh.com": b"2",
    b"lsetstat@openssh.com": b"1",
    b"limits@openssh.com": b"1",
}
CODES = {
    errno.ENOENT: NO_SUCH_FILE,
    errno.ENOTDIR: NO_SUCH_FILE,
    errno.EACCES: PERMISSION_DENIED,
    errno.EPERM: PERMISSION_DENIED,
    errno.EROFS: PERMISSION_DENIED,
}


class Refusal(Exception):
    """What was asked cannot be done, with SFTP's code for why."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code


class Packet:
    """Reads the fields of a request, in their order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self) -> int:
        """Return the next uint32."""
        return int.from_bytes(self._take(4))

    def long(self) -> int:
        """Return the next uint64."""
        return int.from_bytes(self._take(8))

    def text(self) -> bytes:
        """Return the next string."""
        return self._take(self.number())

    def path(self) -> bytes:
        """Return the next string as the name of a file; the empty one is where we stand."""
        name = self.text()
        if b"\0" in name:
            raise Refusal(FAILURE, "a name cannot hold a zero byte")
        return name or b"."

    def attributes(self) -> "Attributes":
        """Return the next ATTRS."""
        flags = self.number()
        return Attributes(
            size=self.long() if flags & HAS_SIZE else None,
            owner=(self.number(), self.number()) if flags & HAS_OWNER else None,
            mode=self.number() & 0o7777 if flags & HAS_MODE else None,
            times=(self.number(), self.number()) if flags & HAS_TIMES else None,
        )

    def _take(self, length: int) -> bytes:
        if self._at + length > len(self._data):
            raise Refusal(BAD_MESSAGE, "the request ends too early")
        self._at += length
        return self._data[self._at - length : self._at]


@dataclass(frozen=True)
class Attributes:
    """What a client wants a file to be; None is left alone. Times are whole seconds: of access, of change."""

    size: int | None
    owner: tuple[int, int] | None
    mode: int | None
    times: tuple[int, int] | None

    def put_on(self, file: int | bytes, *, follow: bool = True) -> None:
        """Make the file so; a descriptor, or a path whose last link is followed or not."""
        # A descriptor is no link, and Python wants to be told nothing else about it.
        follows = follow or isinstance(file, int)
        if self.size is not None and follows:
            os.truncate(file, self.size)
        if self.owner is not None:
            os.chown(file, *self.owner, follow_symlinks=follows)
        if self.mode is not None and follows:
            os.chmod(file, self.mode)
        if self.times is not None:
            os.utime(file, self.times, follow_symlinks=follows)


@dataclass
class OpenFile:
    """A file that a client has open."""

    descriptor: int
    appends: bool


@dataclass
class Server:
    """One client's conversation. `read(n)` and `write(data)` are whole: they return when all n bytes are moved."""

    read: Callable[[int], bytes]
    write: Callable[[bytes], None]
    files: dict[bytes, OpenFile] = field(default_factory=dict)
    folders: dict[bytes, Iterator["os.DirEntry[bytes]"]] = field(default_factory=dict)
    next_handle: int = 0

    def run(self) -> None:
        """Answer requests until the client hangs up."""
        while head := self.read(4):
            length = int.from_bytes(head)
            if not 1 <= length <= PACKET_MAX:
                return  # No client of SFTP; there is nothing to answer to.
            body = self.read(length)
            if len(body) < length:
                return
            self._answer(body[0], Packet(body[1:]))

    def _answer(self, kind: int, packet: Packet) -> None:
        if kind == INIT:
            pairs = b"".join(string(name) + string(value) for name, value in EXTENSIONS.items())
            self._send(SERVER_VERSION, number(VERSION) + pairs)
            return
        request = packet.number()
        try:
            ask = self.REQUESTS.get(kind)
            if ask is None:
                raise Refusal(UNSUPPORTED, "not spoken here")
            answer, body = ask(self, packet)
        except Refusal as refusal:
            answer, body = STATUS, status(refusal.code, str(refusal))
        except OSError as error:
            answer, body = STATUS, status(CODES.get(error.errno or 0, FAILURE), error.strerror or "failed")
        except (ValueError, OverflowError) as error:
            answer, body = STATUS, status(FAILURE, str(error))
        self._send(answer, number(request) + body)

    def _send(self, kind: int, body: bytes) -> None:
        self.write(number(1 + len(body)) + bytes([kind]) + body)

    def _open(self, packet: Packet) -> tuple[int, bytes]:
        path, asked, wanted = packet.path(), packet.number(), packet.attributes()
        flags = {FOR_READ: os.O_RDONLY, FOR_WRITE: os.O_WRONLY}.get(asked & 3, os.O_RDWR)
        for bit, flag in ((FOR_APPEND, os.O_APPEND), (MAKE, os.O_CREAT), (EMPTY, os.O_TRUNC), (ONLY_NEW, os.O_EXCL)):
            flags |= flag if asked & bit else 0
        mode = 0o666 if wanted.mode is None else wanted.mode & 0o777
        self._check_room()
        # Not waiting: a pipe that nobody writes to would hold this conversation up.
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Refusal(FAILURE, "not a file")
        return HANDLE, string(self._keep(self.files, OpenFile(descriptor, bool(asked & FOR_APPEND))))

    def _close(self, packet: Packet) -> tuple[int, bytes]:
        handle = packet.text()
        if handle in self.files:
            os.close(self.files.pop(handle).descriptor)
        elif handle in self.folders:
            self.folders.pop(handle).close()  # type: ignore[attr-defined]  # scandir's own iterator has it
        else:
            raise Refusal(FAILURE, "no such handle")
        return done()

    def _read(self, packet: Packet) -> tuple[int, bytes]:
        file, offset, length = self._file(packet.text()), packet.long(), packet.number()
        data = os.pread(file.descriptor, min(length, DATA_MAX), offset)
        if not data and length:
            raise Refusal(EOF, "end of file")
        return DATA, string(data)

    def _write(self, packet: Packet) -> tuple[int, bytes]:
        file, offset, data = self._file(packet.text()), packet.long(), packet.text()
        while data:
            written = os.write(file.descriptor, data) if file.appends else os.pwrite(file.descriptor, data, offset)
            data, offset = data[written:], offset + written
        return done()

    def _stat(self, packet: Packet) -> tuple[int, bytes]:
        return ATTRS, attributes(os.stat(packet.path()))

    def _lstat(self, packet: Packet) -> tuple[int, bytes]:
        return ATTRS, attributes(os.lstat(packet.path()))

    def _fstat(self, packet: Packet) -> tuple[int, bytes]:
        return ATTRS, attributes(os.fstat(self._file(packet.text()).descriptor))

    def _setstat(self, packet: Packet) -> tuple[int, bytes]:
        path = packet.path()
        packet.attributes().put_on(path)
        return done()

    def _lsetstat(self, packet: Packet) -> tuple[int, bytes]:
        path = packet.path()
        packet.attributes().put_on(path, follow=False)
        return done()

    def _fsetstat(self, packet: Packet) -> tuple[int, bytes]:
        file = self._file(packet.text())
        packet.attributes().put_on(file.descriptor)
        return done()

    def _opendir(self, packet: Packet) -> tuple[int, bytes]:
        self._check_room()
        return HANDLE, string(self._keep(self.folders, os.scandir(packet.path())))

    def _readdir(self, packet: Packet) -> tuple[int, bytes]:
        entries = self.folders.get(packet.text())
        if entries is None:
            raise Refusal(FAILURE, "no such handle")
        names = []
        for entry in entries:
            try:
                names.append(name_entry(entry.name, entry.stat(follow_symlinks=False)))
            except FileNotFoundError:
                continue  # It went away while we looked.
            if len(names) == NAMES_MAX:
                break
        if not names:
            raise Refusal(EOF, "end of folder")
        return NAME, number(len(names)) + b"".join(names)

    def _remove(self, packet: Packet) -> tuple[int, bytes]:
        os.unlink(packet.path())
        return done()

    def _mkdir(self, packet: Packet) -> tuple[int, bytes]:
        path, wanted = packet.path(), packet.attributes()
        os.mkdir(path, 0o777 if wanted.mode is None else wanted.mode)
        return done()

    def _rmdir(self, packet: Packet) -> tuple[int, bytes]:
        os.rmdir(packet.path())
        return done()

    def _realpath(self, packet: Packet) -> tuple[int, bytes]:
        return NAME, number(1) + name_entry(os.path.realpath(packet.path()), None)

    def _readlink(self, packet: Packet) -> tuple[int, bytes]:
        return NAME, number(1) + name_entry(os.readlink(packet.path()), None)

    def _symlink(self, packet: Packet) -> tuple[int, bytes]:
        # OpenSSH's order, which all follow: first what the link says, then where it stands.
        says, stands = packet.path(), packet.path()
        os.symlink(says, stands)
        return done()

    def _rename(self, packet: Packet) -> tuple[int, bytes]:
        """Rename, never over what is there: link(2) says no where a look beforehand could be overtaken."""
        old, new = packet.path(), packet.path()
        if stat.S_ISDIR(os.lstat(old).st_mode):
            if os.path.lexists(new):
                raise Refusal(FAILURE, "there is something of that name")
            os.rename(old, new)
        else:
            os.link(old, new, follow_symlinks=False)
            os.unlink(old)
        return done()

    def _extended(self, packet: Packet) -> tuple[int, bytes]:
        name = packet.text()
        if name == b"limits@openssh.com":
            return EXTENDED_REPLY, struct.pack(">QQQQ", PACKET_MAX, DATA_MAX, DATA_MAX, HANDLES_MAX)
        if name == b"statvfs@openssh.com":
            return EXTENDED_REPLY, room(os.statvfs(packet.path()))
        if name == b"lsetstat@openssh.com":
            return self._lsetstat(packet)
        if name == b"posix-rename@openssh.com":
            os.replace(packet.path(), packet.path())
        elif name == b"hardlink@openssh.com":
            os.link(packet.path(), packet.path(), follow_symlinks=False)
        elif name == b"fsync@openssh.com":
            os.fsync(self._file(packet.text()).descriptor)
        else:
            raise Refusal(UNSUPPORTED, "not spoken here")
        return done()

    def _file(self, handle: bytes) -> OpenFile:
        if handle not in self.files:
            raise Refusal(FAILURE, "no such handle")
        return self.files[handle]

    def _check_room(self) -> None:
        if len(self.files) + len(self.folders) >= HANDLES_MAX:
            raise Refusal(FAILURE, "too many open files")

    def _keep(self, where: dict[bytes, Opened], opened: Opened) -> bytes:
        self.next_handle += 1
        handle = number(self.next_handle)
        where[handle] = opened
        return handle

    REQUESTS = {
        OPEN: _open,
        CLOSE: _close,
        READ: _read,
        WRITE: _write,
        LSTAT: _lstat,
        FSTAT: _fstat,
        SETSTAT: _setstat,
        FSETSTAT: _fsetstat,
        OPENDIR: _opendir,
        READDIR: _readdir,
        REMOVE: _remove,
        MKDIR: _mkdir,
        RMDIR: _rmdir,
        REALPATH: _realpath,
        STAT: _stat,
        RENAME: _rename,
        READLINK: _readlink,
        SYMLINK: _symlink,
        EXTENDED: _extended,
    }


def number(value: int) -> bytes:
    """Return a uint32."""
    return value.to_bytes(4)


def string(value: bytes) -> bytes:
    """Return bytes with their length before them."""
    return number(len(value)) + value


def status(code: int, message: str) -> bytes:
    """Return the body of a STATUS."""
    return number(code) + string(message.encode(errors="replace")) + string(b"")


def done() -> tuple[int, bytes]:
    """Return the answer to what was done."""
    return STATUS, status(OK, "")


def attributes(found: os.stat_result) -> bytes:
    """Return the ATTRS of a file. Times before 1970 and after 2106 are cut to what a uint32 holds."""
    flags = HAS_SIZE | HAS_OWNER | HAS_MODE | HAS_TIMES
    times = [min(max(int(at), 0), 0xFFFFFFFF) for at in (found.st_atime, found.st_mtime)]
    return struct.pack(">IQIIIII", flags, found.st_size, found.st_uid, found.st_gid, found.st_mode, *times)


def name_entry(name: bytes, found: os.stat_result | None) -> bytes:
    """Return one name of a NAME answer, with the line that `ls -l` would print for it."""
    if found is None:
        return string(name) + string(name) + number(0)
    at = time.strftime("%Y-%m-%d %H:%M", time.gmtime(max(0, found.st_mtime)))
    line = (
        f"{stat.filemode(found.st_mode)} {found.st_nlink:3} {found.st_uid:<8} {found.st_gid:<8} {found.st_size:8} {at} "
    )
    return string(name) + string(line.encode() + name) + attributes(found)


def room(found: os.statvfs_result) -> bytes:
    """Return the body of an answer to statvfs@openssh.com."""
    flags = found.f_flag & (os.ST_RDONLY | os.ST_NOSUID)
    sizes = (found.f_bsize, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail)
    return struct.pack(
        ">11Q", *sizes, found.f_files, found.f_ffree, found.f_favail, found.f_fsid & UNSET, flags, found.f_namemax
    )
