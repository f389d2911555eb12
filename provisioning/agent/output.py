"""What a workload wrote: kept in one file up to a limit, read back in chunks that end with a whole character."""

import os
from pathlib import Path

CHARACTER_BYTES_MAX = 4


class OutputFile:
    """Appends to a file until it holds `limit_bytes`, says so in the file once, and keeps nothing more."""

    def __init__(self, path: Path, *, limit_bytes: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # Where a killed supervisor left off, the next goes on; the notice, too, is written once.
        self._left = max(0, limit_bytes - os.fstat(self._file).st_size)
        self._notice = f"\n[gpumarket] The output reached its limit of {limit_bytes} bytes; the rest is not kept.\n"

    def write(self, data: bytes) -> None:
        """Keep `data`, or the part that still fits."""
        if self._left <= 0:
            return
        if len(data) <= self._left:
            self._append(data)
            self._left -= len(data)
            return
        self._append(whole_characters(data[: self._left]) + self._notice.encode())
        self._left = 0

    def _append(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            self._left = 0  # A full disk must not stop the command, which has nobody else to read its pipe.


def read_chunk(path: Path, *, offset: int, limit_bytes: int, is_final: bool) -> bytes:
    """Return up to `limit_bytes` from `offset`; b"" where there is nothing (more) or no file.

    The chunk ends with a whole UTF-8 character, unless the file is final and ends without one.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(limit_bytes)
            is_end = is_final and not file.read(1)
    except FileNotFoundError:
        return b""
    return data if is_end else whole_characters(data)


def whole_characters(data: bytes) -> bytes:
    """Return `data` without the beginning of a UTF-8 character at its end. Bytes that are not UTF-8 stay."""
    for back in range(1, min(CHARACTER_BYTES_MAX, len(data) + 1)):
        byte = data[-back]
        if byte >> 6 == 0b10:
            continue
        wants = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
        return data[:-back] if wants > back else data
    return data
