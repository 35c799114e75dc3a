"""Who may ask: on this machine, whoever names it so and comes from no other site; elsewhere, who has the key.

A site whose name is turned to 127.0.0.1 (DNS rebinding) is known by the name, and one that makes a browser here post by
its origin. The page itself and `/health` say nothing of a model and need no key.
"""

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt_modules.listening import HEADERS, host_name, is_loopback
from gpt_modules.serving.forms import error_of


class Guard:
    """The ASGI application in front of the others.

    Args:
        key: that clients send as `Authorization: Bearer KEY`; None: none is asked for.
        private: only this machine reaches the server, by its own names.
        free: paths without a key.
    """

    def __init__(self, app: ASGIApp, key: str | None, private: bool, free: Collection[str]) -> None:
        self._app, self._key, self._private, self._free = app, key, private, frozenset(free)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refused(scope)
        await (self._app if refused is None else refused)(scope, receive, _with_headers(send))

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._private and not is_loopback(host_name(host)):
            return _refusal(403, "found another name than this machine's own in the Host header", "permission_error")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return _refusal(403, "found a request of another site", "permission_error")
        if self._key is None or scope["path"] in self._free:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip(" ").encode(), self._key.encode()):
            return None
        return _refusal(
            401, "found no API key, or another one, in the Authorization header, expected Bearer KEY", "invalid_api_key"
        )


def _refusal(status: int, message: str, code: str) -> Response:
    return JSONResponse(error_of(message, "invalid_request_error", None, code), status)


def _with_headers(send: Send) -> Send:
    own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *own]
        await send(message)

    return sent
