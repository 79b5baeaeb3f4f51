"""The three lines of the predecessor's info file."""

from __future__ import annotations

import pytest

from kdcache.errors import UsageError
from kdcache.tracking.comet.info_file import CometAccount, read_info

ACCOUNT = CometAccount(api_key="SECRET", project="a project", workspace="me")


@pytest.mark.parametrize(
    "text",
    [
        b"SECRET\na project\nme",
        b"SECRET\na project\nme\n",
        b"SECRET\r\na project\r\nme\r\n\r\n",
        b"\xef\xbb\xbfSECRET \n a project\nme\n  \n",
    ],
)
def test_three_lines(tmp_path, text):
    (tmp_path / "info").write_bytes(text)
    assert read_info(tmp_path / "info") == ACCOUNT


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "line 1 of .* should be the API key, and is missing"),
        (b"\na project\nme\n", "line 1 of .* should be the API key, and is missing"),
        (b"SECRET\n", "line 2 of .* should be the project, and is missing"),
        (b"SECRET\n\nme\n", "line 2 of .* should be the project, and is missing"),
        (b"SECRET\na project\n\n", "line 3 of .* should be the workspace, and is missing"),
        (b"SECRET\na project\nme\nmore\n", "has 4 lines, and should have three"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
    ],
)
def test_what_is_wrong_is_said_and_the_key_is_not(tmp_path, text, says):
    (tmp_path / "info").write_bytes(text)
    with pytest.raises(UsageError, match=says) as caught:
        read_info(tmp_path / "info")
    assert "SECRET" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"tracking\.comet\.info: .*none cannot be read: No such"):
        read_info(tmp_path / "none")


def test_the_key_is_not_printed():
    assert "SECRET" not in repr(ACCOUNT)
