"""The `datasets` library, as quiet as a program that reports its own errors wants it, and data sets on its hub."""

import logging
import re
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import urlsplit

from gpt_modules.errors import UserError

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")

_LONGEST = 200  # characters of a name; the hub allows 96 and a configuration


@contextmanager
def quiet_datasets() -> Iterator[Any]:
    """The library (imported only now: it takes a second), without bars outside a terminal, without its error log,
    without the request by which it counts every load on its server, and, where there is no network, without the half
    minute in which it tries again: then it opens what it has downloaded before.
    """
    import datasets
    from huggingface_hub import constants

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    before = datasets.logging.get_verbosity(), datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    offline = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    if not _has_network(constants.ENDPOINT):
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield datasets
    finally:
        datasets.logging.set_verbosity(before[0])
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = before[1]
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = offline


def open_hub(source: str, split: str, folder: str, streaming: bool) -> Any:
    """The rows of "owner/name" or "owner/name:config".

    Raises:
        UserError: No such name, split or network.
    """
    name, config = split_name(source)
    try:
        with quiet_datasets() as datasets:
            return datasets.load_dataset(name, config, split=split, cache_dir=folder, streaming=streaming)
    except Exception as error:  # no network, no such name, no such split, a gated set: a dozen kinds
        _refuse(source, error)


def hub_version(source: str) -> str:
    """Name and content hash of what the hub holds now."""
    name, config = split_name(source)
    try:
        with quiet_datasets() as datasets:
            return f"{source} {datasets.load_dataset_builder(name, config).hash}"
    except Exception as error:
        _refuse(source, error)


def split_name(source: str) -> tuple[str, str | None]:
    """(name, config) of a data set.

    Raises:
        UserError: It cannot be a name on the hub.
    """
    if len(source) > _LONGEST or not _NAME.fullmatch(source):
        shown = source if len(source) <= _LONGEST else f"{source[:_LONGEST]}..."
        raise UserError(f"{shown}: found no such file, and a name on the hub was expected to read owner/name:config")
    name, _, config = source.partition(":")
    return name, config or None


def _has_network(endpoint: str) -> bool:
    """Whether the hub's name is known; behind a proxy nobody here can tell."""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(endpoint).hostname, None)
    except OSError:
        return False
    return True


def _refuse(source: str, error: Exception) -> NoReturn:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    raise UserError(f"{source}: found no such file and no such data set on the hub ({reason})") from error
