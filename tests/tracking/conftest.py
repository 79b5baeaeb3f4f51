"""Tests of tracking never reach Comet: no key, no settings of this machine, no other host."""

from __future__ import annotations

import socket

import pytest

from tests.train.conftest import _one_thread, cache, train  # noqa: F401

NOBODY = "http://127.0.0.1:9/clientlib/"


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    for name in ("COMET_API_KEY", "COMET_PROJECT_NAME", "COMET_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COMET_CONFIG", str(tmp_path / "no.config"))
    monkeypatch.setenv("COMET_URL_OVERRIDE", NOBODY)
    monkeypatch.setenv("COMET_AUTO_LOG_ENV_DETAILS", "false")
    connect = socket.socket.connect

    def refuse(self, address):
        host = address[0] if isinstance(address, tuple) else address
        assert str(host) in ("127.0.0.1", "::1"), f"a test connects to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def comet(train):  # noqa: F811
    """``train_student`` with Comet and a CSV file; every step is logged."""

    def run(*arguments, comet=None, trainer=None, tracking=None, **options):
        settings = {"loggers": ["csv", "comet"], "name": "first try", "comet": comet or {}}
        return train(
            *arguments,
            tracking={**settings, **(tracking or {})},
            trainer={"log_every_n_steps": 1, **(trainer or {})},
            **options,
        )

    return run
