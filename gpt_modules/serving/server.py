"""The application: its paths, and what serves it."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gpt_modules.connections import Connection, TooLarge, TooSlow
from gpt_modules.data.text.spelling import Spelling
from gpt_modules.serving.bodies import Bodies
from gpt_modules.serving.ending import Ending, Uvicorn
from gpt_modules.serving.engine import Counts, Engine, Failed
from gpt_modules.serving.forms import Form, error_of
from gpt_modules.serving.guard import Guard
from gpt_modules.serving.metrics import Metrics
from gpt_modules.serving.planning import Speaker
from gpt_modules.serving.refusals import UnknownModel, refusal_of
from gpt_modules.serving.requests import Asked, Chat, Completion, Score, read_body
from gpt_modules.serving.scoring import Scoring
from gpt_modules.serving.speaking import Answering

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
KindT = TypeVar("KindT")
Answer = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Served:
    """What is served.

    Args:
        name: of the model, as clients ask for it.
        digest: of its weights.
        speaker, engine: of a language model.
        scoring: of a reward model.
        deadline: seconds that an answer may take, and as many the body that asks for it.
    """

    name: str
    digest: str
    speaker: Speaker | None = None
    engine: Engine | None = None
    scoring: Scoring | None = None
    deadline: float = 600.0


class _Paths:
    def __init__(self, served: Served) -> None:
        self.served, self.metrics, self.began = served, Metrics(), int(time.time())
        self.bodies = Bodies(served.deadline)
        if served.speaker is not None and served.engine is not None:
            self.spelling = Spelling(served.speaker.tokenizer)
            self.answering = Answering(served.engine, self.metrics, served.deadline)

    async def health(self, request: Request) -> Response:
        """200 where requests are computed."""
        engine = self.served.engine
        well = engine is None or engine.is_alive
        return JSONResponse({"status": "ok" if well else "stopping"}, 200 if well else 503)

    async def told(self, request: Request) -> Response:
        """`/metrics`."""
        counts = Counts() if self.served.engine is None else self.served.engine.counts
        return PlainTextResponse(self.metrics.text(counts), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: Request) -> Response:
        """The one that is served."""
        name = request.path_params.get("name")
        if name is not None:
            self._expect(name)
        found = {"id": self.served.name, "object": "model", "created": self.began, "owned_by": "gpt_modules"}
        return JSONResponse(found if name is not None else {"object": "list", "data": [found]})

    async def completions(self, request: Request) -> Response:
        """Texts that go on."""
        asked = await self._asked(request, Completion)
        speaker = self._speaker()
        choices = await asyncio.to_thread(speaker.completion, asked)

        def prompt(choice: int) -> str:
            text, ids = asked.prompts[choice // asked.n], choices[choice].row.prompt
            return self.spelling.text_of(ids) if self.spelling.has_control(ids) or not isinstance(text, str) else text

        return await self.answering.respond(request, asked, choices, self._form("text_completion"), prompt)

    async def chat(self, request: Request) -> Response:
        """Conversations that go on."""
        asked = await self._asked(request, Chat)
        choices = await asyncio.to_thread(self._speaker().chat, asked)
        return await self.answering.respond(request, asked, choices, self._form("chat.completion"), lambda choice: "")

    async def score(self, request: Request) -> Response:
        """What a reward model gives responses."""
        asked = await self._asked(request, Score)
        if self.served.scoring is None:
            raise UnknownModel(f"model: found {self.served.name}, a language model, expected a reward model")
        scores = await self.served.scoring.scores(asked.asked, asked.responses)
        return JSONResponse({"object": "list", "model": self.served.name, "scores": scores})

    async def _asked(self, request: Request, kind: type[KindT]) -> KindT:
        asked = await asyncio.to_thread(read_body, await self.bodies.read(request), kind)
        if isinstance(asked, Asked | Score):
            self._expect(asked.model)
        return asked

    def _expect(self, name: str) -> None:
        if name != self.served.name:
            raise UnknownModel(f"model: found {name[:200]!r}, expected {self.served.name!r}")

    def _speaker(self) -> Speaker:
        if self.served.speaker is None:
            raise UnknownModel(f"model: found {self.served.name}, a reward model, expected a language model")
        return self.served.speaker

    def _form(self, kind: str) -> Form:
        return Form(kind, self.served.name, f"fp_{self.served.digest[:12]}", self.spelling)


def make_app(served: Served, key: str | None = None, private: bool = True) -> Ending:
    """The application. key, private: as of `Guard`."""
    paths = _Paths(served)
    ways: list[tuple[str, str, Answer]] = [
        ("GET", "/v1/models", paths.models), ("GET", "/v1/models/{name:path}", paths.models),
        ("POST", "/v1/completions", paths.completions), ("POST", "/v1/chat/completions", paths.chat),
        ("POST", "/v1/score", paths.score), ("GET", "/health", paths.health), ("GET", "/metrics", paths.told),
    ]  # fmt: skip
    routes = [Route(path, _told(paths.metrics, path, answer), methods=[method]) for method, path, answer in ways]
    speaks = served.speaker is not None
    shown = _files().items() if speaks else ()
    pages = {"/" if name == "page.html" else f"/{name}": (name, content) for name, content in shown}
    routes += [_page(path, name, content) for path, (name, content) in pages.items()]
    routes += [] if speaks else [Route("/", _no_page)]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _elsewhere})
    return Ending(Guard(app, key, private, ["/health", *pages]), paths.bodies)


def _told(metrics: Metrics, path: str, answer: Answer) -> Answer:
    async def told(request: Request) -> Response:
        try:
            response = await answer(request)
        except ClientDisconnect:
            metrics.left += 1
            return Response(status_code=400)  # to nobody
        except Exception as error:
            status, body = refusal_of(error)
            headers = {"Retry-After": "1"} if status in (429, 503) else {}
            if isinstance(error, TooLarge | TooSlow | Failed):  # what is left of its body would be read as a request
                headers["Connection"] = "close"
            response = JSONResponse(body, status, headers)
        metrics.answered(path.partition("{")[0], response.status_code)
        return response

    return told


async def _elsewhere(request: Request, error: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(error, HTTPException)
    found = f"found {request.method} {request.url.path[:200]}: {error.detail}"
    return JSONResponse(error_of(found, "invalid_request_error"), error.status_code, error.headers)


async def _no_page(request: Request) -> Response:
    """In place of a page to chat at."""
    return PlainTextResponse("A reward model: it does not chat, it scores answers at POST /v1/score.\n")


def _files() -> dict[str, bytes]:
    folder = files("gpt_modules.serving") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if Path(file.name).suffix in _TYPES}


def _page(path: str, name: str, content: bytes) -> Route:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=_TYPES[Path(name).suffix])

    return Route(path, answer)


def serve(app: Ending, listener: socket.socket, drain: int, started: Callable[[], Any]) -> None:
    """Answer until a signal ends it: then no connection is taken, and what is at work has `drain` seconds.

    Args:
        started: called once it answers.
    """
    config = uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="off", ws="none", server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=drain, http=Connection,
    )  # fmt: skip
    server = Uvicorn(app, config)
    started()
    server.run(sockets=[listener])
