"""The site: built without a warning, every link leads somewhere, every page has a way back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.documents import DOCUMENTS, ROOT
from tests.hang import HANG_S


def build(repository: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """MkDocs as scripts/docs.sh runs it."""
    words = ["-m", "mkdocs", "build", "--strict", "--config-file", ".mkdocs.yml"]
    return subprocess.run(
        [sys.executable, *words, "--site-dir", str(site)],
        check=False,
        cwd=repository,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


class Links(HTMLParser):
    """What a page links to, and the names of its own places."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places |= {value for name in ("id", "name") if (value := given.get(name))}
        target = given.get("href" if tag in ("a", "link") else "src")
        if target:
            self.targets.add(target)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Page -> its links, of the whole site."""
    site = tmp_path_factory.mktemp("site")
    done = build(ROOT, site)
    assert done.returncode == 0, done.stderr
    return {page: Links(page) for page in site.rglob("*.html") if page.name != "404.html"}


def home_of(pages: Iterable[Path]) -> Path:
    return min(pages, key=lambda page: (len(page.parts), page.name != "index.html"))


def test_every_document_is_a_page(pages):
    home = home_of(pages)
    found = {str(page.relative_to(home.parent)) for page in pages}
    wanted = {name.replace("README.md", "index.html").replace(".md", ".html") for name in DOCUMENTS}
    assert found >= wanted


def test_every_link_leads_somewhere(pages):
    missing = []
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                missing.append((page.name, target))
            elif parts.fragment and file in pages:
                place = unquote(parts.fragment)
                missing += [] if place in pages[file].places else [(page.name, target)]
    assert missing == []


def test_every_page_leads_home_and_home_leads_to_every_page(pages):
    def reached(page: Path) -> set[Path]:
        paths = {urlsplit(target).path for target in pages[page].targets}
        return {(page.parent / unquote(path)).resolve() for path in paths if path}

    home = home_of(pages)
    assert [page.name for page in pages if home not in reached(page) | {page}] == []
    assert set(pages) - reached(home) - {home} == set()


def test_nothing_is_fetched_from_elsewhere(pages):
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "fonts.googleapis" not in text
        assert '<script src="http' not in text


@pytest.mark.parametrize(
    "wrong", ["[a](nowhere.md)", "[a](cost.md#nowhere)", "::: kdcache.nowhere"]
)
def test_a_broken_link_is_an_error(wrong, tmp_path):
    for name in (".mkdocs.yml", "scripts/docs_pages.py", *DOCUMENTS, "CHANGELOG.md", "LICENSE"):
        copy = tmp_path / "repository" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    (tmp_path / "repository" / "kdcache").mkdir(exist_ok=True)
    page = tmp_path / "repository" / "docs" / "vision.md"
    page.write_text(page.read_text(encoding="utf-8") + f"\n{wrong}\n", encoding="utf-8")
    done = build(tmp_path / "repository", tmp_path / "site")
    assert done.returncode == 1
    assert "nowhere" in done.stdout + done.stderr
