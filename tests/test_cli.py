"""The dispatcher: commands, exit codes, and errors in one paragraph."""

from __future__ import annotations

import logging
import sys
import types

import pytest

import kdcache
from kdcache.cli import COMMANDS, main
from kdcache.errors import CacheMissingError, KdcacheError, PreemptedError, UsageError


@pytest.fixture
def command(monkeypatch):
    """``command(function)``: the dispatcher then knows ``kdcache test``."""

    def install(run):
        module = types.ModuleType("command_of_a_test")
        module.run = run
        monkeypatch.setitem(sys.modules, "command_of_a_test", module)
        monkeypatch.setitem(COMMANDS, "test", ("command_of_a_test", "a test"))

    return install


def raising(error):
    def run(arguments):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UsageError("no such key."), 2, "kdcache: no such key.\n"),
        (CacheMissingError("nothing there."), 1, "CacheMissingError: nothing there.\n"),
        (KdcacheError("a\nb"), 1, "KdcacheError: a\nb\n"),
        (PreemptedError("go on."), 75, "PreemptedError: go on.\n"),
        (KeyboardInterrupt(), 130, "interrupted; what was finished stays\n"),
        (SystemExit(3), 3, ""),
        (SystemExit(None), 0, ""),
        (SystemExit("words"), 1, ""),
    ],
)
def test_exit_codes(command, capsys, error, code, text):
    command(raising(error))
    assert main(["test"]) == code
    assert capsys.readouterr().err == text


def test_an_unexpected_error_names_the_line_that_is_no_librarys(command, capsys):
    def run(arguments):
        return int("x" + "".join(sorted(arguments, key=len)))  # line of this test

    command(run)
    assert main(["test"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("ValueError: invalid literal")
    assert "test_cli.py:" in text
    assert "--debug" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("words", [["test", "--debug"], ["--debug", "test"]])
@pytest.mark.parametrize("error", [UsageError("known"), ValueError("unknown")])
def test_debug_shows_the_traceback_and_the_paragraph(command, capsys, words, error):
    command(raising(error))
    assert main(words) == error.__dict__.get("exit_code", getattr(error, "exit_code", 1))
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.count(str(error)) >= 2


def test_arguments_arrive_without_the_command(command):
    seen = []
    command(lambda arguments: seen.append(list(arguments)) or 7)
    before = list(sys.argv)
    assert main(["test", "a", "--debug", "--b=c"]) == 7
    assert seen == [["a", "--b=c"]]
    assert sys.argv == before


def test_words_of_the_process_are_the_default(command, monkeypatch):
    seen = []
    command(lambda arguments: seen.append(list(arguments)) or 0)
    monkeypatch.setattr(sys, "argv", ["kdcache", "test", "x"])
    assert main() == 0
    assert seen == [["x"]]


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["help"], []])
def test_help_lists_the_commands(capsys, words):
    assert main(words) == (0 if words else 2)
    text = capsys.readouterr().out
    for name, (_, about) in COMMANDS.items():
        assert f"{name:<15} {about}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kdcache {kdcache.__version__}\n"


def test_an_unknown_command_has_a_suggestion(capsys):
    assert main(["train"]) == 2
    assert "there is no command 'train'. Did you mean 'train-student'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["inspect", "verify"])
def test_commands_on_a_cache(capsys, tmp_path, name):
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: kdcache {name} ")
    assert main([name]) == 2
    assert capsys.readouterr().err.startswith("kdcache: the following arguments are required")
    assert main([name, "x", "--jsn"]) == 2
    assert "--jsn" in capsys.readouterr().err
    assert main([name, str(tmp_path / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main([name, str(tmp_path)]) == 1
    assert "is no teacher cache" in capsys.readouterr().err


def test_our_messages_are_plain_lines_once(command, capsys):
    command(lambda arguments: logging.getLogger("kdcache.x").info("half way") or 0)
    main(["test"])
    capsys.readouterr()
    main(["test"])
    assert capsys.readouterr().err == "half way\n"


def test_modules_of_the_current_folder_can_be_imported(command, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    command(lambda arguments: 0 if str(tmp_path) == sys.path[0] else 1)
    assert main(["test"]) == 0
    assert main(["test"]) == 0
    assert sys.path.count(str(tmp_path)) == 1
