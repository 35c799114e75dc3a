"""The end of the server: a request whose body is not there holds nothing, and one that is cut off hears so."""

import asyncio
import json
import socket
from typing import Any

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt_modules.serving.bodies import Bodies
from gpt_modules.serving.engine import Failed
from gpt_modules.serving.refusals import refusal_of


class Ending:
    """The outermost ASGI application. A request that is cancelled, for the time to drain is up, gets a 503; an answer
    that is streamed gets a last event that says so.
    """

    def __init__(self, app: ASGIApp, bodies: Bodies) -> None:
        self._app, self.bodies = app, bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = ended = False

        async def sent(message: Message) -> None:
            nonlocal begun, ended
            begun = True
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except asyncio.CancelledError:
            status, body = refusal_of(Failed("stopping"))
            if not begun:
                await JSONResponse(body, status, {"Connection": "close"})(scope, receive, send)
            elif not ended:
                event = b"data: " + json.dumps(body).encode() + b"\n\n"
                await send({"type": "http.response.body", "body": event, "more_body": False})


class Uvicorn(uvicorn.Server):
    """The server of an `Ending`, which is told before it drains."""

    def __init__(self, app: Ending, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._bodies = app.bodies

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> Any:
        """Take no connection and wait for no body; then as ever."""
        self._bodies.stop()
        await super().shutdown(sockets)
