"""The built wheel holds the whole package and runs from another folder, away from the sources."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_built_wheel_installs_and_runs(tmp_path):
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run([sys.executable, *build], check=True, capture_output=True)
    wheel = next(tmp_path.glob("kdcache-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "kdcache").rglob("*.py")}
    assert sources <= names
    templates = (ROOT / "kdcache/project/templates").rglob("*.yaml")
    assert {str(path.relative_to(ROOT)) for path in templates} < names
    assert "kdcache/store/FORMAT.md" in names
    assert not any(name.startswith(("tests/", "examples/", "scripts/")) for name in names)

    installed = tmp_path / "installed"
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([sys.executable, *pip, str(installed), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "import kdcache, kdcache.cli, sys; print(kdcache.__file__); kdcache.cli.main(['--help'])"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    ).stdout
    assert shown.startswith(str(installed))
    assert "dump-teacher" in shown
