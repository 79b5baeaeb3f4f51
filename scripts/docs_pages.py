"""Which files of the repository are pages of the site: a hook of MkDocs, see .mkdocs.yml.

A page stands in the site where it stands in the repository, so relative links need no change. Files
that a page links to (an experiment, a script, the licence) come along as they are.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "docs/*.md",
    "examples/*/README.md",
    "kdcache/store/FORMAT.md",
)
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?([\w.]+)</code>")
_LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace what MkDocs found in docs/ by the pages of the whole repository."""
    docs = Path(config.docs_dir)
    theme = [file for file in files if not Path(file.abs_src_path or "").is_relative_to(docs)]
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    found = dict.fromkeys([*pages, *(file for page in pages for file in linked(page))])
    return Files([*theme, *(_file(path, config) for path in found)])


def linked(page: Path) -> list[Path]:
    """Files of the repository that a page links to; what is not there is left to the build."""
    targets = _LINK.findall(page.read_text(encoding="utf-8"))
    paths = [(page.parent / target).resolve() for target in targets if "://" not in target]
    return [path for path in paths if path.is_file() and path.is_relative_to(ROOT)]


def _file(path: Path, config: MkDocsConfig) -> File:
    return File(
        path.relative_to(ROOT).as_posix(),
        src_dir=str(ROOT),
        dest_dir=config.site_dir,
        use_directory_urls=config.use_directory_urls,
    )


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings name other objects in Sphinx's way: a link where the object is on the page."""
    del page, config, files
    places = {
        place.rpartition(".")[2]: place for place in re.findall(r'id="(kdcache[\w.]*)"', html)
    }

    def linked_name(found: re.Match[str]) -> str:
        name = found[1].rpartition(".")[2]
        code = f"<code>{name}</code>"
        return f'<a href="#{places[name]}">{code}</a>' if name in places else code

    return _ROLE.sub(linked_name, html)
