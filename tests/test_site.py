"""The docs site takes in every page and keeps every link; `make site` builds it and checks the rest."""

import importlib.util
import re

import pytest
import yaml

from tests.conftest import ROOT
from tests.test_docs import PAGES, each_page, headings

SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
_spec = importlib.util.spec_from_file_location("mkdocs_hooks", ROOT / SITE["hooks"][0])
assert _spec
assert _spec.loader
hooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hooks)


def test_every_page_is_in_the_navigation_once():
    listed = sorted(
        page for section in SITE["nav"] for pages in section.values() for page in paths(pages)
    )
    listings = [f"{folder}/index.md" for folder in hooks.LISTINGS]
    assert listed == sorted([*(str(path.relative_to(ROOT)) for path in PAGES), *listings])


def test_a_link_between_pages_stays_as_it_is():
    text = (
        "[a](../helm/gan-training/README.md) [b](data.md#how-fast) [c](#here) [d](https://example.com/x)"
    )
    assert hooks.link_listings(text, "docs/operations.md") == text


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("README.md", "examples/", "examples/index.md"),
        ("docs/a.md", "../examples/", "../examples/index.md"),
        ("docs/a.md", "../service/presets/b-c.yaml", "../service/presets/index.md#b-cyaml"),
        ("README.md", "service/presets/b.yaml", "service/presets/index.md#byaml"),
    ],
)
def test_a_link_to_a_source_file_leads_to_its_text(page, link, expected):
    assert hooks.link_listings(f"see [it]({link}).", page) == f"see [it]({expected})."


@pytest.mark.parametrize("folder", hooks.LISTINGS)
def test_a_listing_has_each_file_whole_and_a_heading_where_links_lead(folder, tmp_path):
    title, language = hooks.LISTINGS[folder]
    files = sorted((ROOT / folder).glob(f"*.{language}"))
    text = hooks.listing(title, language, files)
    (tmp_path / "page.md").write_text(text.replace("````", "```"))
    for file in files:
        assert file.read_text() in text
        link = hooks.link_listings(f"[it]({folder}/{file.name})", "README.md")
        assert link.rstrip(")").partition("#")[2] in headings(tmp_path / "page.md")


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<script src="https://cdn.example/a.js"></script>', ["https://cdn.example/a.js"]),
        ('<link rel="stylesheet" href="//fonts.example/b.css">', ["//fonts.example/b.css"]),
        ("<img alt=c src=http://example.com/c.png>", ["http://example.com/c.png"]),
        ('<a href="https://example.com">away</a> <img src="docs/digits.png">', []),
    ],
)
def test_what_a_page_would_load_from_another_host_is_seen(html, expected):
    assert hooks.remote_parts(html) == expected


@each_page
def test_nested_lists_are_indented_as_the_site_reads_them(path):
    assert not re.search(r"^ {1,3}([-*]|\d+\.) ", path.read_text(), re.MULTILINE), (
        "indent by four spaces"
    )


def paths(pages: list[dict[str, str]]) -> list[str]:
    """The pages of one section of the navigation."""
    return [path for page in pages for path in page.values()]
