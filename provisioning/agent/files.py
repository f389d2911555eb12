"""Files that are whole or absent, whatever happens to the machine while they are written."""

import contextlib
import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

ROOM_BYTES = 4096


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put `data` at `path`, readable by the owner alone. Readers see the old file or the new one, never a part.

    `durable` waits for the disk, so that the file also survives a power cut.
    """
    name = path.with_name(f".{path.name}-{os.urandom(6).hex()}")
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_over(path: Path, data: bytes) -> None:
    """Put `data` in the place of as many bytes of an old file, for which even a full disk has room."""
    handle = os.open(path, os.O_WRONLY)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """`write_whole` for JSON."""
    write_whole(path, json.dumps(value).encode(), durable=durable)


def keep_room(path: Path) -> None:
    """Hold room for a small file that has to be written later, also where the disk is full by then."""
    with contextlib.suppress(OSError):
        write_whole(_room_of(path), b" " * ROOM_BYTES, durable=False)


def write_json_in_room(path: Path, value: Any) -> None:
    """`write_json`, in the room that was kept for it where the disk has no other."""
    try:
        write_json(path, value)
    except OSError as error:
        room = _room_of(path)
        if error.errno not in {errno.ENOSPC, errno.EDQUOT} or not room.exists():
            raise
        write_over(room, json.dumps(value).encode().ljust(ROOM_BYTES))
        os.replace(room, path)


def _room_of(path: Path) -> Path:
    return path.with_name(f".{path.name}-room")


def read_json(path: Path) -> Any:
    """Return what the file holds, or None where there is no file."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def sync_folder(folder: Path) -> None:
    """Wait until names made or removed in the folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all that is in it. Raises OSError if something stays."""
    import shutil  # noqa: PLC0415  a supervisor, which removes nothing, starts without it in half the time

    try:
        shutil.rmtree(folder)
    except PermissionError:
        # A program may take its own folders' permissions away; their owner may give them back.
        folder.chmod(stat.S_IRWXU)
        for parent, names, _ in os.walk(folder):
            for inner in (Path(parent, name) for name in names):
                if not inner.is_symlink():
                    inner.chmod(stat.S_IRWXU)
        shutil.rmtree(folder)
