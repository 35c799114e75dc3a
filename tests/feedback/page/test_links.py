"""Where the page is found."""

import socket

import pytest

from gpt_modules.errors import UserError
from gpt_modules.feedback.page.links import address_of, is_private, listen, tokens_of


def test_an_address_of_this_machine():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://127.0.0.1:{port}/"
        assert is_private(listener)
        with socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_port_that_is_taken():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        line = rf"--port: found {port} on 127.0.0.1 not free \(Address already in use\), expected another one"
        with pytest.raises(UserError, match=line):
            listen("127.0.0.1", port)
    listen("127.0.0.1", port).close()  # free again at once


def test_what_others_can_reach():
    with listen("0.0.0.0", 0) as listener:
        assert not is_private(listener)
        assert address_of(listener) == f"http://{socket.gethostname()}:{listener.getsockname()[1]}/"


@pytest.mark.parametrize(
    ("host", "port", "line"),
    [
        ("a..b", 0, "--host: found 'a..b', expected a name or an address of this machine"),
        ("x" * 300, 0, "--host: found 'xxxx"),
        ("127.0.0.1", 65536, "--port: found 65536, expected a number up to 65535"),
        ("192.0.2.1", 0, "--port: found 0 on 192.0.2.1 not free"),
    ],
)
def test_where_nothing_can_listen(host, port, line):
    with pytest.raises(UserError) as refused:
        listen(host, port)
    assert str(refused.value).startswith(line)


def test_links_are_of_their_store_and_their_labeler():
    one = tokens_of(b"a" * 32, ["ann", "ben"])
    assert one == tokens_of(b"a" * 32, ["ann", "ben"])
    assert len({*one.values(), *tokens_of(b"b" * 32, ["ann", "ben"]).values()}) == 4
    assert all(len(token) == 32 for token in one.values())
