"""Commit and changes of the repository that the current folder is in."""

from __future__ import annotations

from kdcache.tracking.code_version import code_version
from kdcache.tracking.hyperparameters import flattened
from tests.tracking.comet.test_comet_offline import git, repository  # noqa: F401


def test_changes_to_tracked_files_count(repository):  # noqa: F811
    commit = git(repository, "rev-parse", "HEAD")
    assert code_version(repository) == {"git_commit": commit, "git_dirty": True}
    git(repository, "checkout", "-q", "model.py")
    (repository / "new").mkdir()
    (repository / "new" / "notes.txt").write_text("not tracked")
    assert code_version(repository / "new") == {"git_commit": commit, "git_dirty": False}


def test_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_version(tmp_path) == {}
    git(tmp_path, "init", "-q")
    assert code_version(tmp_path) == {}  # no commit yet
    monkeypatch.setenv("PATH", "")
    assert code_version(tmp_path) == {}


def test_a_record_is_flattened():
    record = {"a": {"b": {"c": 1}, "d": [1, "x"]}, "e": None, "f": True, "g": {}, "h": "nan"}
    assert flattened(record) == {"a/b/c": 1, "a/d": '[1, "x"]', "e": "null", "f": True, "h": "nan"}
