"""What a client sends to a server of ours, bounded in size and in time: the head of a request, and its body."""

import asyncio
from typing import Any

from starlette.requests import Request
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from gpt_modules.errors import UserError

HEAD_SECONDS = 20.0
DRAINED = 1 << 24  # bytes of a body beyond what is taken that are read all the same, so that its sender hears why
_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_Http: Any = AutoHTTPProtocol


class TooLarge(UserError):
    """A body beyond what is taken."""


class TooSlow(UserError):
    """A body that is not there in time."""


class Connection(_Http):  # type: ignore[misc]
    """uvicorn's, which has a time for the pause between requests, with one for the head of each: who sends a part of it
    holds a connection for `HEAD_SECONDS`.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """The first head is waited for."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """A head that is whole has a request at work; else a part of one is there, whose time goes on."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        self._forget()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(HEAD_SECONDS, self._end)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()


async def whole_body(request: Request, most: int) -> bytes:
    """One body.

    Raises:
        TooLarge: it has more than so many bytes.
    """
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= most:
            body += chunk
        elif size > DRAINED:
            break
    if size > most:
        raise TooLarge(f"body: found more than {most:,} bytes, expected fewer")
    return bytes(body)


def late(seconds: float) -> TooSlow:
    """The line for a body that is not there after so many seconds."""
    return TooSlow(f"body: found a part of it after {seconds:g} s, expected the whole")
