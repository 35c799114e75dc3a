"""The bodies of requests as they come: bounded in size and in time, and waited for no more once the server ends."""

import asyncio

from starlette.requests import Request

from gpt_modules.connections import late, whole_body
from gpt_modules.errors import UserError
from gpt_modules.serving.engine import Failed

LARGEST_BODY = 1 << 20  # bytes


class Unread(UserError):
    """A body that is no JSON by its headers, or not as it is."""


class Bodies:
    """All that are on their way. deadline: seconds that one may take."""

    def __init__(self, deadline: float) -> None:
        self._deadline, self._limits, self._stopped = deadline, set[asyncio.Timeout](), False

    async def read(self, request: Request) -> bytes:
        """One body.

        Raises:
            Unread: its headers say that it is no JSON in UTF-8, as it is.
            TooLarge, TooSlow: it is.
            Failed: the server ends before it is there.
        """
        _check_headers(request)
        try:
            async with asyncio.timeout(0 if self._stopped else self._deadline) as limit:
                self._limits.add(limit)
                return await whole_body(request, LARGEST_BODY)
        except TimeoutError as error:
            if self._stopped:
                raise Failed("stopping") from error
            raise late(self._deadline) from error
        finally:
            self._limits.discard(limit)

    def stop(self) -> None:
        """Wait for none any more; called in the event loop."""
        self._stopped = True
        for limit in self._limits:
            limit.reschedule(0)


def _check_headers(request: Request) -> None:
    told = request.headers.get("content-type", "")
    kind, *further = [part.strip().lower() for part in told.split(";")]
    charsets = [part.partition("=")[2].strip('" ') for part in further if part.startswith("charset")]
    if kind != "application/json":
        raise Unread(f"content-type: found {told[:40]!r}, expected application/json")
    if any(charset not in ("utf-8", "utf8") for charset in charsets):
        raise Unread(f"content-type: found {told[:60]!r}, expected no charset but UTF-8")
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise Unread(f"content-encoding: found {coding[:40]!r}, expected a body as it is")
