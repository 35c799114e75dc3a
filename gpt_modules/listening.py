"""A socket that a server listens on, where it is found, which names are this machine's own, and what a browser may do
with what it gets.
"""

import ipaddress
import socket
from urllib.parse import urlsplit

from gpt_modules.errors import UserError, expect

HEADERS = {
    # Answers are text by construction (the pages' scripts); were one ever markup, it could load, run and send nothing.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on; port 0: any that is free.

    Raises:
        UserError: the host is not this machine's, or the port is taken.
    """
    expect(port <= 65535, "--port", port, "a number up to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host: found {host[:60]!r}, expected a name or an address of this machine") from error
    found = socket.socket(family, kind)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        found.close()
        raise UserError(
            f"--port: found {port} on {host[:60]} not free ({error.strerror}), expected another one, or 0 for any"
        ) from error
    return found


def is_private(listener: socket.socket) -> bool:
    """Whether it can be reached from this machine alone."""
    return is_loopback(listener.getsockname()[0])


def address_of(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def host_name(host: str) -> str:
    """The name in a Host header, without its port; nothing where there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(name: str) -> bool:
    """Whether a name or an address is this machine's own."""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
