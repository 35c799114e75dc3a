"""What went wrong, as a client reads it."""

import pytest

from gpt_modules.connections import TooLarge, TooSlow
from gpt_modules.errors import TooLong, UserError
from gpt_modules.serving.bodies import Unread
from gpt_modules.serving.engine import Busy, Failed, Late
from gpt_modules.serving.refusals import UnknownModel, refusal_of


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (UserError("top_p: found 0"), 400, "invalid_request_error", "top_p", None),
        (UserError("messages[2].role: found x"), 400, "invalid_request_error", "messages", None),
        (UserError("No field here."), 400, "invalid_request_error", None, None),
        (TooLong("prompt: found"), 400, "invalid_request_error", "prompt", "context_length_exceeded"),
        (TooLarge("body: found"), 413, "invalid_request_error", "body", "body_too_large"),
        (TooSlow("body: found"), 408, "invalid_request_error", "body", "deadline"),
        (Unread("content-encoding: found"), 415, "invalid_request_error", "content-encoding", None),
        (UnknownModel("model: found"), 404, "invalid_request_error", "model", "model_not_found"),
        (Busy(), 429, "rate_limit_error", None, "queue_full"),
        (Late(), 504, "timeout", None, "deadline"),
        (Failed("stopping"), 503, "server_error", None, None),
        (Failed("MemoryError: none left"), 500, "server_error", None, None),
    ],
)
def test_each_has_its_status(error, status, kind, param, code):
    found, body = refusal_of(error)
    assert (found, body["error"]["type"]) == (status, kind)
    assert (body["error"]["param"], body["error"]["code"]) == (param, code)


def test_a_fault_of_the_servers_own_tells_nothing_of_it():
    status, body = refusal_of(KeyError("/secret/path"))
    assert status == 500
    assert "secret" not in body["error"]["message"]
