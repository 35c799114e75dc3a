"""Where a server is found, and which names are this machine's."""

import socket

import pytest

from gpt_modules.errors import UserError
from gpt_modules.listening import address_of, host_name, is_loopback, is_private, listen


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


def test_what_is_this_machines_own():
    assert all(is_loopback(name) for name in ("localhost", "127.0.0.1", "127.9.9.9", "::1"))
    assert not any(is_loopback(name) for name in ("", "example.org", "0.0.0.0", "::", "192.168.0.1"))


def test_the_name_of_a_host():
    found = [host_name(host) for host in ("localhost:80", "[::1]:7861", "A.example", "", "[::1", "a b")]
    assert found == ["localhost", "::1", "a.example", "", "", "a b"]
