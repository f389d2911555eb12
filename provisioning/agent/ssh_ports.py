"""One forwarded connection to a port of a workload: joins an SSH channel and a socket, pressure both ways.

Not asyncssh's own forwarder: that one leaves a connection open for ever when the port has said all before the client
has, as a server does that greets and hangs up.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import asyncssh

CONNECT_S = 10.0
PIECE_BYTES = 128 << 10
WAITING_BYTES_MAX = 1 << 20


class Forward(asyncssh.SSHTCPSession[bytes]):
    """Lives from the open socket to the end of both directions; each may end before the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._client_is_done = False
        self._port_is_done = False
        self._is_paused = False
        self.is_over = False
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        """Keep the channel."""
        self._chan = chan

    def session_started(self) -> None:
        """Begin with what the port says; nothing of it was lost, since nobody has read it yet."""
        self._begin(self._pour())

    def data_received(self, data: bytes, _datatype: asyncssh.DataType) -> None:
        """Hand on what the client says; when the port does not keep up, the client must wait."""
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > WAITING_BYTES_MAX and not self._is_paused:
            self._is_paused = True
            self._chan.pause_reading()
            self._begin(self._catch_up())

    def eof_received(self) -> bool:
        """Hand on that the client has said all; it may still be answered."""
        self._client_is_done = True
        with contextlib.suppress(OSError):
            self._writer.write_eof()
        if self._port_is_done:
            self._chan.close()
        return True

    def pause_writing(self) -> None:
        """Wait until the client has taken what there is."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._may_write.set()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Hang up at the port too."""
        self.is_over = True
        for task in tuple(self._tasks):
            task.cancel()
        self._writer.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pour(self) -> None:
        try:
            while data := await self._reader.read(PIECE_BYTES):
                self._chan.write(data)
                await self._may_write.wait()
            self._port_is_done = True
            self._chan.write_eof()
            if not self._client_is_done:
                return
        except OSError:
            pass  # The port broke off, and so do we.
        self._chan.close()

    async def _catch_up(self) -> None:
        with contextlib.suppress(OSError):
            await self._writer.drain()
        self._is_paused = False
        self._chan.resume_reading()


async def forward(address: str, port: int) -> Forward:
    """Return a connection to a port of a workload; raises asyncssh's error where nobody answers there."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port, limit=PIECE_BYTES), CONNECT_S)
    except (OSError, TimeoutError) as error:
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, str(error) or "nobody answers there") from error
    return Forward(reader, writer)
