"""`/v1/completions` and `/v1/chat/completions`: a request becomes a job, its pieces an answer, whole or streamed."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from gpt_modules.backbone.decoding.batching import Likely
from gpt_modules.serving.engine import Choice, Engine, Job, Piece
from gpt_modules.serving.forms import Form, usage_of
from gpt_modules.serving.metrics import Metrics
from gpt_modules.serving.refusals import refusal_of
from gpt_modules.serving.requests import Asked, Chat, Completion


class Talk:
    """One request while it is answered: what the engine tells, in the event loop."""

    def __init__(self, engine: Engine, choices: Sequence[Choice], streams: bool, deadline: float) -> None:
        loop, self._told = asyncio.get_running_loop(), asyncio.Queue[list[Piece] | Exception]()

        def tell(pieces: list[Piece] | Exception) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._told.put_nowait, pieces)

        self._engine, self._open = engine, len(choices)
        self._job = Job(choices, streams, time.monotonic() + deadline, tell)
        engine.submit(self._job)

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """As they come, until all choices have ended. Raises what the engine tells instead."""
        while self._open:
            told = await self._told.get()
            if isinstance(told, Exception):
                raise told
            self._open -= sum(piece.end is not None for piece in told)
            yield told

    def leave(self) -> None:
        """Nobody waits any more; nothing happens where it is done."""
        self._engine.cancel(self._job)


class Answering:
    """How choices become a response."""

    def __init__(self, engine: Engine, metrics: Metrics, deadline: float) -> None:
        self._engine, self._metrics, self._deadline = engine, metrics, deadline

    async def respond(
        self, request: Request, asked: Asked, choices: Sequence[Choice], form: Form, prompts: Callable[[int], str]
    ) -> Response:
        """prompts: the text of a choice's prompt, to be echoed."""
        began = time.monotonic()
        talk = Talk(self._engine, choices, asked.stream, self._deadline)
        usage = _Usage(asked, choices)
        if asked.stream:
            stream = self._streamed(talk, asked, form, usage, began)
            return StreamingResponse(stream, media_type="text/event-stream")
        done = asyncio.ensure_future(_all(talk))
        gone = asyncio.ensure_future(_until_gone(request))
        try:
            await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                self._metrics.left += 1
                return Response(status_code=400)  # to nobody
            pieces = done.result()
        finally:
            talk.leave()
            done.cancel()
            gone.cancel()
        self._metrics.seconds.add(time.monotonic() - began)
        found = [_whole(i, choice, asked, form, pieces, prompts) for i, choice in enumerate(choices)]
        return JSONResponse(form.whole(found, usage.now()))

    async def _streamed(
        self, talk: Talk, asked: Asked, form: Form, usage: "_Usage", began: float
    ) -> AsyncIterator[bytes]:
        ended, first, spoken = False, True, Counter[int]()
        try:
            if form.chats:
                yield _event(form.chunk([form.part(i, None, None, None) for i in range(asked.n)]))
            async for pieces in talk.pieces():
                if first:
                    self._metrics.first_token.add(time.monotonic() - began)
                    first = False
                for piece in pieces:
                    likely = piece.likely if _tells_logprobs(asked) else None
                    if piece.text or piece.end or likely:
                        part = form.part(piece.choice, piece.text, likely, piece.end, spoken[piece.choice])
                        yield _event(form.chunk([part]))
                    spoken[piece.choice] += len(piece.text)
            ended = True
            self._metrics.seconds.add(time.monotonic() - began)
            if asked.counts_in_stream:
                yield _event(form.chunk([], usage.now()))
            yield b"data: [DONE]\n\n"
        except Exception as error:
            ended = True
            yield _event(refusal_of(error)[1])
        finally:
            self._metrics.left += not ended
            talk.leave()


class _Usage:
    """Tokens of prompts, each counted once however many choices it has, and of answers so far."""

    def __init__(self, asked: Asked, choices: Sequence[Choice]) -> None:
        self._choices, self._prompt = choices, sum(len(choice.row.prompt) for choice in choices[:: asked.n])

    def now(self) -> dict[str, int]:
        return usage_of(self._prompt, sum(choice.spoken for choice in self._choices))


def _whole(
    index: int, choice: Choice, asked: Asked, form: Form, pieces: Sequence[Piece], prompts: Callable[[int], str]
) -> dict[str, Any]:
    own = [piece for piece in pieces if piece.choice == index]
    echoed = prompts(index) if isinstance(asked, Completion) and asked.echo else ""
    likely: list[Likely] | None = None
    if _tells_logprobs(asked):
        likely = [*choice.row.prompt_likely, *(of for piece in own for of in piece.likely)]
    text = echoed + "".join(piece.text for piece in own)
    return form.choice(index, text, likely, own[-1].end, echoed=len(choice.row.prompt_likely))


def _tells_logprobs(asked: Asked) -> bool:
    return asked.logprobs if isinstance(asked, Chat) else isinstance(asked, Completion) and asked.logprobs is not None


async def _all(talk: Talk) -> list[Piece]:
    return [piece async for pieces in talk.pieces() for piece in pieces]


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"
