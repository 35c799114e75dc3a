"""Who may ask the server for anything, and what a browser may do with what it gets.

Without labelers' links, only a browser on this machine that was sent to this machine by name is answered: another site
whose name is turned to 127.0.0.1 (DNS rebinding) is not. With links, whoever holds one is answered as its labeler, and
all else gets nothing. Nobody posts but the page itself.
"""

import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt_modules.listening import HEADERS, host_name, is_loopback


class Guard:
    """The ASGI application in front of the page's own. It leaves the labeler of a link in the request's state.

    Args:
        tokens: of each labeler, the first part of the path of its link; None: there are no links.
    """

    def __init__(self, app: ASGIApp, tokens: Mapping[str, str] | None) -> None:
        self._app, self._tokens = app, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        admitted = self._admitted(scope)
        if isinstance(admitted, Response):
            await admitted(scope, receive, _with_headers(send))
        else:
            await self._app(admitted, receive, _with_headers(send))

    def _admitted(self, scope: Scope) -> Scope | Response:
        """The request as the application gets it, or its refusal, which says nothing."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        labeler = None
        if self._tokens is None:
            if not is_loopback(host_name(host)):
                return Response(status_code=403)
        else:
            token, slash, rest = scope["path"].removeprefix("/").partition("/")
            labeler = _holder(token, self._tokens)
            if labeler is None:
                return Response(status_code=404)
            if not slash:
                return RedirectResponse(f"/{token}/")
            scope = {**scope, "path": f"/{rest}"}
        if scope["method"] == "POST" and headers.get("origin") not in (f"http://{host}", f"https://{host}"):
            return Response(status_code=403)
        return {**scope, "state": {**scope.get("state", {}), "labeler": labeler}}


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sent


def _holder(token: str, tokens: Mapping[str, str]) -> str | None:
    """The labeler of a token, in a time that says nothing of the tokens."""
    found = [name for name, own in tokens.items() if hmac.compare_digest(own.encode(), token.encode())]
    return found[0] if found else None
