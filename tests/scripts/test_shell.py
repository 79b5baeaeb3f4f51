"""The shell scripts: each is a program that its shell can read."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [ROOT / ".ci/run", *sorted((ROOT / "scripts").glob("*.sh"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_the_whole_script(script):
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_rooms_of_the_numeric_tests_exist():
    text = (ROOT / "scripts/test_numerics.sh").read_text()
    rooms = re.search(r"rooms=\((.*?)\)", text)[1].split()
    assert len(rooms) >= 5
    assert all(list((ROOT / room).rglob("test_*.py")) for room in rooms)
