"""What goes wrong, as a status and an error in OpenAI's form."""

import re
from typing import Any

from gpt_modules.connections import TooLarge, TooSlow
from gpt_modules.errors import TooLong, UserError
from gpt_modules.serving.bodies import Unread
from gpt_modules.serving.engine import Busy, Failed, Late
from gpt_modules.serving.forms import error_of

_FIELD = re.compile(r"([a-z_-]+)(?=[.\[:])")


class UnknownModel(UserError):
    """Another model's name."""


def refusal_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status and the body of what was raised.

    A mistake of the client's is its line, with the field that it begins with; a fault of the server's own says no more
    than that.
    """
    if isinstance(error, UserError):
        field = _FIELD.match(str(error))
        status, code = _KINDS.get(type(error), (400, None))
        return status, error_of(str(error), "invalid_request_error", field[1] if field else None, code)
    if isinstance(error, Busy):
        return 429, error_of("the queue is full; try again later", "rate_limit_error", None, "queue_full")
    if isinstance(error, Late):
        return 504, error_of("the time of a request is up", "timeout", None, "deadline")
    told = str(error) if isinstance(error, Failed) else type(error).__name__
    return 503 if told == "stopping" else 500, error_of(f"the server failed: {told}", "server_error")


_KINDS: dict[type[UserError], tuple[int, str | None]] = {
    TooLarge: (413, "body_too_large"),
    TooSlow: (408, "deadline"),
    Unread: (415, None),
    TooLong: (400, "context_length_exceeded"),
    UnknownModel: (404, "model_not_found"),
}
