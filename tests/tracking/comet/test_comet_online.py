"""Comet with a key, against a server on this machine; and where it refuses or cannot be reached."""

from __future__ import annotations

import contextlib
import json
import logging
import socket

import comet_ml
import pytest

from kdcache.errors import UsageError
from tests.tracking.comet.archives import archive_in, values_in
from tests.tracking.comet.comet_server import comet_server

KEY = "k" * 25
ACCOUNT = f"{KEY}\na project\nme\n"


@pytest.fixture
def info(tmp_path):
    (tmp_path / "comet.txt").write_text(ACCOUNT)
    return str(tmp_path / "comet.txt")


@pytest.fixture
def server(monkeypatch):
    with comet_server() as running:
        monkeypatch.setenv("COMET_URL_OVERRIDE", running.url)
        yield running


@pytest.fixture
def refusing(monkeypatch):
    with comet_server(refuses=True) as running:
        monkeypatch.setenv("COMET_URL_OVERRIDE", running.url)
        yield running


@pytest.fixture
def impatient(monkeypatch):
    """Nothing is tried again."""
    kinds = ("CONNECT", "READ", "STATUS", "TOTAL")
    retries = [f"GET_OR_ADD_EXPERIMENT_RETRY_{kind}" for kind in kinds]
    for name in ("HTTP_SESSION_RETRY_TOTAL", *retries):
        monkeypatch.setenv(f"COMET_{name}", "0")


@pytest.fixture
def nobody(monkeypatch, impatient):
    """A port that nobody listens at."""
    with contextlib.closing(socket.socket()) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("COMET_URL_OVERRIDE", f"http://127.0.0.1:{port}/clientlib/")


def test_everything_is_sent(comet, server, info, cache, caplog):
    with caplog.at_level(logging.INFO):
        run = comet(comet={"info": info}, tracking={"parameters": {"note": "hello"}})
    (begun,) = map(json.loads, server.sent("add/run"))
    assert (begun["apiKey"], begun["projectName"], begun["teamName"]) == (KEY, "a project", "me")
    sent = {
        (one["metricName"], one["step"]): float(one["metricValue"])
        for one in server.batch("experiment/metric")
    }
    wanted = values_in(run.output)
    assert {name: sent[name] for name in wanted} == pytest.approx(wanted)
    parameters = {
        one["parameterName"]: one["parameterValue"] for one in server.batch("experiment/parameter")
    }
    assert parameters["digest"] == cache["train"].digest
    assert parameters["parameters/note"] == "hello"
    others = map(json.loads, server.sent("log-other"))
    assert ("Name", "first try") in {(one["key"], str(one["value"])) for one in others}
    uploads = [path for path, _ in server.requests if "type=histogram3d" in path]
    assert len(uploads) == 4
    ended = json.loads(server.sent("status-report/update")[-1])
    assert ended["is_alive"] is False
    told = [one.getMessage() for one in caplog.records if one.name.startswith("kdcache.tracking")]
    assert told == [f"Comet experiment: http://comet.test/{begun['experimentKey']}"]
    assert not (run.output / "comet").exists()
    assert KEY not in (run.output / "run.json").read_text()


def test_the_key_may_come_from_the_environment(comet, server, monkeypatch):
    monkeypatch.setenv("COMET_API_KEY", KEY)
    comet(comet={"project": "another"})
    (begun,) = map(json.loads, server.sent("add/run"))
    assert (begun["apiKey"], begun["projectName"]) == (KEY, "another")


def test_a_key_is_not_used_offline(comet, server, info):
    run = comet(comet={"info": info, "online": False})
    assert server.requests == []
    assert archive_in(run.output).experiment["project_name"] == "a project"


@pytest.mark.parametrize("online", [None, True])
def test_a_refused_key_is_told_before_the_first_step(comet, refusing, info, tmp_path, online):
    with pytest.raises(UsageError) as caught:
        comet(comet={"info": info, "online": online})
    text = str(caught.value)
    assert text.startswith("Comet did not start the experiment: The given API key '***' is invalid")
    assert "Nothing was trained. Check key, workspace and project" in text
    assert KEY not in text
    assert not (tmp_path / "run").exists()


def test_without_a_connection_there_is_an_archive(comet, nobody, info, caplog):
    run = comet(comet={"info": info})
    archive = archive_in(run.output)
    wanted = values_in(run.output)
    assert {name: archive.metrics[name] for name in wanted} == pytest.approx(wanted)
    (told,) = [one.getMessage() for one in caplog.records if "kept offline" in one.getMessage()]
    assert told.startswith("Comet cannot be reached (")


def test_a_connection_that_was_asked_for(comet, nobody, info, tmp_path):
    with pytest.raises(
        UsageError, match=r"Failed to establish a connection.*Nothing was trained\. "
    ):
        comet(comet={"info": info, "online": True})
    assert not (tmp_path / "run").exists()


def test_online_needs_a_key(comet, tmp_path):
    with pytest.raises(UsageError, match=r"online is true and there is no API key.*COMET_API_KEY"):
        comet(comet={"online": True})
    assert not (tmp_path / "run").exists()


def test_a_server_that_fails_at_the_end_fails_no_training(comet, server, info, caplog, monkeypatch):
    end = comet_ml.Experiment.end

    def fail(experiment):
        end(experiment)
        raise OSError("the line is cut")

    monkeypatch.setattr("comet_ml.Experiment.end", fail)
    run = comet(comet={"info": info})
    assert run.student.exists()
    assert "Comet may not have all of http://comet.test/" in caplog.text
    assert "the line is cut" in caplog.text
