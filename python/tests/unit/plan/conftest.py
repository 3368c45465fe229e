"""Fixtures: `debzero plan` in this process, as importing torch takes most of its time."""
import json
import socket

import pytest

from debzero import cli


@pytest.fixture
def planned(capsys, monkeypatch):
    """Runs the command; returns its JSON. The hub could be asked here, and must not be."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("the hub is asked"))

    def run(*arguments):
        assert cli.main(["plan", *map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys):
    """Runs the command, which must refuse its input; returns the problems."""
    def run(*arguments):
        assert cli.main(["plan", *map(str, arguments), "--json"]) == 2
        return json.loads(capsys.readouterr().out)["problems"]

    return run
