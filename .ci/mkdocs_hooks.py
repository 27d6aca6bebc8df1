"""Chooses the files that mkdocs makes pages of, and adapts links to source files; for `make site`.

Every page keeps its path in the repository, so a relative link works in a source viewer and on the site.
A folder of source files becomes one page with the text of each file, and links to the files lead there.
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Pages outside docs/.
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "helm/gan-training/README.md")
# Folders shown as one page: its title, and the language of its files.
LISTINGS = {"examples": ("Examples", "py"), "service/presets": ("Presets", "yaml")}

# Below mkdocs' own logger, so that warnings fail a strict build.
log = logging.getLogger("mkdocs.hooks")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give the files of docs/ their paths in the repository, and add the pages from outside docs/."""
    root = Path(config.config_file_path).parent
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
        files.append(_page(config, root, f"docs/{file.src_uri}"))
    for path in PAGES:
        files.append(_page(config, root, path))
    for folder, (title, language) in LISTINGS.items():
        text = listing(title, language, sorted((root / folder).glob(f"*.{language}")))
        files.append(File.generated(config, f"{folder}/index.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point the page's links to source files at the listings."""
    return link_listings(markdown, page.file.src_uri)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Warn, and so fail a strict build, if a browser would load a part of the page from elsewhere."""
    for address in remote_parts(output):
        log.warning("%s loads %s; keep a copy of it in docs/", page.file.src_uri, address)
    return output


def listing(title: str, language: str, files: list[Path]) -> str:
    """A page with the text of each file below a heading with its name."""
    sections = [f"## {file.name}\n\n````{language}\n{file.read_text()}````\n" for file in files]
    return "\n".join([f"# {title}\n", *sections])


def link_listings(markdown: str, path: str) -> str:
    """The Markdown of the page at `path`, with links to listed folders and files led to the listings."""
    here = posixpath.dirname(path)

    def replace(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, link[1]))
        folder, name = posixpath.split(target)
        if target in LISTINGS:
            folder, anchor = target, ""
        elif folder in LISTINGS:
            anchor = "#" + name.replace(".", "")  # the heading's, which has no dots
        else:
            return link[0]
        return f"]({posixpath.relpath(folder, here)}/index.md{anchor})"

    return re.sub(r"\]\(([^)\s#]+)\)", replace, markdown)


def remote_parts(html: str) -> list[str]:
    """Addresses on other hosts from which a page loads scripts, styles, images or frames."""
    tags = re.findall(r"<(?:script|link|img|iframe|source|object|embed)\b[^>]*>", html)
    address = re.compile(r"""\b(?:src|href|data)=["']?((?:https?:)?//[^"'\s>]+)""")
    return [url for tag in tags for url in address.findall(tag)]


def _page(config: MkDocsConfig, root: Path, path: str) -> File:
    return File.generated(config, path, abs_src_path=str(root / path))
