"""The server of the labelling page.

Every request opens the store anew, does one transaction and answers after its commit, so that "kept" is said of nothing
that a kill could lose, and several servers may share a file.
"""

import math
import socket
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gpt_modules.connections import Connection, TooLarge, TooSlow
from gpt_modules.errors import UserError
from gpt_modules.feedback.agreement import pairwise
from gpt_modules.feedback.page.guard import Guard
from gpt_modules.feedback.page.markdown import tree_of
from gpt_modules.feedback.page.messages import Message, OfTask, Voting, read_message
from gpt_modules.feedback.page.shown import in_order, shown, vote_of
from gpt_modules.storage.comparisons import Desk, Wanted, said_last

CLAIM_SECONDS = (
    900.0  # a task is held for one labeler since it last did something; a vote that comes later counts all the same
)
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MessageT = TypeVar("MessageT", bound=Message)


class _Actions:
    """What a labeler may ask for: each takes an open store, the labeler and the message, and gives JSON."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted

    def hello(self, desk: Desk, labeler: str, message: Message) -> dict[str, Any]:
        """The labeler becomes known."""
        desk.add_labeler(labeler, "person")
        return {"labeler": labeler}

    def task(self, desk: Desk, labeler: str, message: Message) -> dict[str, Any]:
        """The task that it holds, or the next one; None: nothing is left."""
        found = desk.claim(labeler, CLAIM_SECONDS, self._wanted)
        return {"task": None if found is None else shown(found, labeler, desk.form)}

    def hold(self, desk: Desk, labeler: str, message: OfTask) -> dict[str, Any]:
        """The labeler still works on its task."""
        return {"held": desk.hold(message.task, labeler, CLAIM_SECONDS)}

    def markdown(self, desk: Desk, labeler: str, message: OfTask) -> dict[str, Any]:
        """Trees of prompt, one for each turn of a conversation, and of answers in the labeler's order; None: it stays
        text.
        """
        task = desk.task(message.task)
        said = [task.prompt] if isinstance(task.prompt, str) else [str(turn["content"]) for turn in task.prompt]
        return {
            "prompt": [tree_of(text) for text in said],
            "answers": [tree_of(answer.text) for answer in in_order(task, labeler)],
        }

    def vote(self, desk: Desk, labeler: str, message: Voting) -> dict[str, Any]:
        """A vote is kept."""
        desk.vote(vote_of(message, desk.task(message.task), labeler))
        return {"kept": True}

    def undo(self, desk: Desk, labeler: str, message: OfTask) -> dict[str, Any]:
        """A vote is withdrawn and shown again."""
        draft = desk.take_back(message.task, labeler, CLAIM_SECONDS)
        if draft is None:
            raise UserError(f"task: found {message.task}, on which {labeler} has not voted")
        return {"task": shown(desk.task(message.task), labeler, desk.form, draft)}

    def open(self, desk: Desk, labeler: str, message: OfTask) -> dict[str, Any]:
        """A vote is shown again; it counts until another one takes its place."""
        draft = desk.vote_of(message.task, labeler)
        if draft is None:
            raise UserError(f"task: found {message.task}, on which {labeler} has not voted")
        return {"task": shown(desk.task(message.task), labeler, desk.form, draft)}

    def votes(self, desk: Desk, labeler: str, message: Message) -> dict[str, Any]:
        """Its votes, the newest first."""
        return {
            "votes": [own._replace(prompt=said_last(own.prompt)[:300])._asdict() for own in desk.own_votes(labeler)]
        }

    def standing(self, desk: Desk, labeler: str, message: Message) -> dict[str, Any]:
        """How far it is, its pace, and how far others agree with it."""
        agreement = pairwise(desk.shared(labeler), labeler)
        last = desk.own_votes(labeler)[:1]
        return {
            **desk.standing(labeler, self._wanted)._asdict(),
            "agreement": None if math.isnan(agreement.part) else agreement.part,
            "pairs": agreement.pairs,
            "last": last[0].task if last else None,
        }


def make_app(path: Path, wanted: Wanted = Wanted(), tokens: Mapping[str, str] | None = None) -> ASGIApp:
    """The application.

    Args:
        path: of the store.
        tokens: of each labeler, where they have links of their own.
    """
    actions = _Actions(wanted)
    kinds: list[tuple[Callable[..., dict[str, Any]], type[Message]]] = [
        (actions.hello, Message), (actions.task, Message), (actions.hold, OfTask), (actions.markdown, OfTask),
        (actions.vote, Voting), (actions.undo, OfTask), (actions.open, OfTask), (actions.votes, Message),
        (actions.standing, Message),
    ]  # fmt: skip
    routes = [_static(name, content) for name, content in _files().items()]
    routes += [_action(path, action, kind) for action, kind in kinds]
    return Guard(Starlette(routes=routes), tokens)


def _files() -> dict[str, bytes]:
    folder = files("gpt_modules.feedback.page") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if Path(file.name).suffix in _TYPES}


def _static(name: str, content: bytes) -> Route:
    kind = _TYPES[Path(name).suffix]

    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind)

    return Route("/" if name == "page.html" else f"/{name}", answer)


def _action(path: Path, action: Callable[..., dict[str, Any]], kind: type[MessageT]) -> Route:
    def done(request: Request, message: MessageT) -> dict[str, Any]:
        labeler = _labeler(request, message)
        with Desk.open(path) as desk:
            if action.__name__ != "hello" and desk.kind_of(labeler) != "person":
                raise UserError(f"labeler: found {labeler!r}, whom {path.name} does not know as a person")
            return action(desk, labeler, message)

    async def answer(request: Request) -> Response:
        try:
            message = await read_message(request, kind)
            return JSONResponse(await run_in_threadpool(done, request, message))
        except (TooLarge, TooSlow) as error:  # what is left of the body would be read as a request
            status = 413 if isinstance(error, TooLarge) else 408
            return JSONResponse({"error": str(error)}, status, {"Connection": "close"})
        except UserError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody

    return Route(f"/api/{action.__name__}", answer, methods=["POST"])


def _labeler(request: Request, message: Message) -> str:
    of_link: str | None = request.state.labeler
    if of_link is None and message.labeler is None:
        raise UserError("labeler: missing, expected a name")
    if of_link is not None and message.labeler not in (None, of_link):
        raise UserError(f"labeler: found {message.labeler!r} on the link of {of_link!r}")
    return of_link or message.labeler or ""


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Answer until a signal ends it."""
    config = uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="off", ws="none", server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=5, http=Connection,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])
