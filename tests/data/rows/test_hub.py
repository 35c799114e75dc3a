"""Data sets on the hub, without a hub: what the library is asked, in which state, and what of its failures is said."""

import logging
import socket
import types
import urllib.request

import datasets
import pytest
from huggingface_hub import constants

from gpt_modules.data.rows.hub import hub_version, open_hub, quiet_datasets, split_name
from gpt_modules.errors import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing here asks anybody; the names of hosts that are asked for."""
    asked = []

    def refuse(host, *args, **kwargs):
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    return asked


def state():
    offline = (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
    return datasets.logging.get_verbosity(), datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, *offline


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("imdb", ("imdb", None)),
        ("owner/name", ("owner/name", None)),
        ("owner/na-me_1.0:config-1.x", ("owner/na-me_1.0", "config-1.x")),
        ("x" * 200, ("x" * 200, None)),
    ],
)
def test_a_name_and_its_configuration(source, parts):
    assert split_name(source) == parts


@pytest.mark.parametrize(
    "source", ["", "what is this", "a/b/c", "a:b:c", "a:", "/a", "a/", "owner/name\n", "https://x/y", "x" * 201]
)
def test_what_cannot_be_a_name(source):
    with pytest.raises(UserError) as refused:
        split_name(source)
    line = str(refused.value)
    shown = source if len(source) <= 200 else "x" * 200 + "..."
    assert line == f"{shown}: found no such file, and a name on the hub was expected to read owner/name:config"


def test_the_library_is_quiet_counts_nobody_and_is_as_before_afterwards(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    before = state()
    with quiet_datasets() as library:
        assert library is datasets
        assert state() == (logging.CRITICAL, False, True, True)
    assert state() == before
    with pytest.raises(KeyError), quiet_datasets():
        raise KeyError
    assert state() == before


@pytest.mark.parametrize("proxies", [{}, {"https": "http://proxy"}])
def test_it_asks_again_and_again_only_where_there_may_be_a_network(monkeypatch, no_network, proxies):
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example:8443/x")
    monkeypatch.setattr(urllib.request, "getproxies", lambda: proxies)
    for config in (datasets.config, constants):
        monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    with quiet_datasets():
        assert state()[2:] == ((False, False) if proxies else (True, True))
    assert no_network == ([] if proxies else ["hub.example"])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [])
    with quiet_datasets():
        assert state()[2:] == (False, False)


def test_a_user_who_works_offline_stays_offline(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [])
    for config in (datasets.config, constants):
        monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    with quiet_datasets():
        assert state()[2:] == (True, True)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_the_library_is_asked_for(monkeypatch, streaming):
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **named: calls.append((args, named)) or ["row"])
    assert open_hub("owner/name:config", "validation", "folder", streaming) == ["row"]
    assert calls == [(("owner/name", "config"), {"split": "validation", "cache_dir": "folder", "streaming": streaming})]


def test_a_version_is_the_name_and_the_hash_of_the_content(monkeypatch):
    builder = types.SimpleNamespace(hash="abc123")
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda *args: builder if args == ("owner/name", None) else None
    )
    assert hub_version("owner/name") == "owner/name abc123"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("Unknown split\nand pages more"), "Unknown split"),
        (ConnectionError(), "ConnectionError"),
        (RuntimeError("x" * 1000), "x" * 160),
    ],
)
@pytest.mark.parametrize("asked", [lambda name: open_hub(name, "train", "folder", False), hub_version])
def test_any_failure_is_one_line(monkeypatch, error, reason, asked):
    def fail(*args, **named):
        raise error

    for name in ("load_dataset", "load_dataset_builder"):
        monkeypatch.setattr(datasets, name, fail)
    with pytest.raises(UserError) as refused:
        asked("owner/name")
    assert str(refused.value) == f"owner/name: found no such file and no such data set on the hub ({reason})"
    assert refused.value.__cause__ is error


def test_a_name_that_cannot_be_one_asks_nobody(no_network):
    for asked in (lambda name: open_hub(name, "train", "folder", True), hub_version):
        with pytest.raises(UserError, match="a name on the hub was expected"):
            asked("a/b/c")
    assert not no_network
