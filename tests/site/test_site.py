"""Links lead somewhere, names are found, and pages can be read as they are."""

import importlib
import json
import sys
from urllib.parse import unquote, urlsplit

import pytest

from tests.site.conftest import ROOT

# Furo has two landmarks of one kind and a line outside of all, and numpydoc's lists stand in lists of another.
OF_THE_THEME = {"landmark-unique", "region", "definition-list"}


@pytest.fixture(scope="module")
def names():
    """The full names of everything public, as the documentation lists them."""
    for package in ("docutils", "sphinx", "numpydoc"):
        pytest.importorskip(package)
    sys.path.insert(0, str(ROOT / "docs" / "extensions"))
    try:
        linked_names = importlib.import_module("linked_names")
    finally:
        sys.path.pop(0)
    return [*linked_names.public_names(), *linked_names.interop_names()]


def test_links_inside_the_site_lead_somewhere(pages, site):
    dead = []
    for path, page in pages.items():
        for reference in page.references:
            url = urlsplit(reference)
            if url.scheme or url.netloc:
                continue
            target = (page.path.parent / unquote(url.path)).resolve() if url.path else page.path
            other = pages.get(str(target.relative_to(site.resolve()))) if target.suffix == ".html" else None
            is_there = target.exists() and (not url.fragment or other is None or unquote(url.fragment) in other.anchors)
            if not is_there:
                dead.append((path, reference))
    assert len(pages) > 100
    assert not dead


def test_pictures_say_what_they_show(pages):
    written = {path: page for path, page in pages.items() if path != "py-modindex.html"}  # Sphinx makes that alone
    pictures = [(path, text) for path, page in written.items() for text in page.pictures.values()]
    assert len(pictures) > 30
    assert [found for found in pictures if len(found[1].split()) < 4] == []


def test_formulas_are_no_source(pages):
    assert [path for path, page in pages.items() if "$$" in "".join(page.text)] == []


def test_pages_load_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        text = path.read_text("utf-8")
        assert 'src="http' not in text, path
        assert 'rel="stylesheet" href="http' not in text, path


def test_search_and_index_know_every_public_name(site, pages, names):
    text = (site / "searchindex.js").read_text("utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").rstrip().removesuffix(")"))
    found = {f"{prefix}.{entry[4]}" if prefix else entry[4] for prefix, of in index["objects"].items() for entry in of}
    assert set(names) - found == set()
    anchors = {unquote(urlsplit(reference).fragment) for reference in pages["genindex.html"].references}
    assert {name for name in names if name not in anchors and f"module-{name}" not in anchors} == set()


def documents():
    docs = ROOT / "docs"
    return [str(p.relative_to(docs).with_suffix("")) for p in sorted([*docs.glob("*.md"), *docs.glob("*/*.md")])]


@pytest.mark.parametrize("name", documents())
def test_every_page_says_what_to_read_next(name, pages):
    source = (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    following = source.partition("\n## Read next\n")[2]
    assert "](" in following.partition("\n## ")[0]
    assert f"{name}.html" in pages
    assert f"{name.rpartition('/')[2]}.html" in " ".join(pages["index.html"].references)  # the side bar has all pages


def test_pages_of_functions_say_what_to_read_next(pages):
    generated = [page for path, page in pages.items() if path.startswith("generated/attention_xp.")]
    assert len(generated) > 80
    assert all("Read next" in page.text for page in generated)


def test_mentions_of_functions_are_links(pages):
    for path, target in (
        ("choose.html", "generated/attention_xp.flash_attention.html#attention_xp.flash_attention"),
        ("options.html", "generated/attention_xp.merge_attention.html#attention_xp.merge_attention"),
        ("generated/attention_xp.flash_attention.html", "#attention_xp.scaled_dot_product_attention"),  # of a docstring
        ("interop/torch.html", "#attention_xp.interop.torch.rule_from_block_mask"),
        ("generated/attention_xp.viz.plot_mask.html", "#attention_xp.masks.Mask.reach"),
    ):
        assert any(reference.endswith(target) for reference in pages[path].references), (path, target)


def test_every_extra_is_on_the_page_on_installing():
    tomllib = importlib.import_module("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    assert [extra for extra in extras if f"`{extra}`" not in page] == []


@pytest.mark.parametrize("path", ["index.html", "choose.html", "gallery.html", "tutorials/heads.html"])
def test_pages_are_readable_without_javascript(browser, site, path):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((site / path).as_uri())
    assert page.locator("article h1").is_visible()
    assert page.locator("article >> text=Read next").is_visible()
    assert page.locator(".sidebar-tree >> text=Quick start").first.is_visible()
    page.context.close()


def test_formulas_are_drawn_without_javascript(browser, site):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((site / "generated" / "attention_xp.flash_attention.html").as_uri())
    box = page.locator("math").first.bounding_box()
    assert box["width"] > 100
    assert box["height"] > 10
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "name", ["index", "coming-from", "gallery", "tutorials/heads", "generated/attention_xp.flash_attention"]
)
def test_pages_are_accessible_and_ask_nobody(browser, address, name, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page, complaints = browser.new_page(color_scheme=scheme), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("data:", address)) or complaints.append(request.url))
    page.goto(f"{address}/{name}.html")
    page.wait_for_load_state("networkidle")
    found = {violation["id"] for violation in axe.run(page).response["violations"]}
    page.close()
    assert not complaints
    assert found <= OF_THE_THEME


@pytest.mark.parametrize("name", ["flash_attention", "CausalMask", "rotary_embedding", "flash_attn_varlen_func", "mha"])
def test_search_finds(browser, address, name):
    page = browser.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{address}/search.html?q={name}")
    page.wait_for_selector("#search-results li a")
    page.wait_for_function("() => document.querySelector('.search-summary')?.textContent.includes('found')")
    links = page.locator("#search-results li > a").evaluate_all("(all) => all.map((a) => a.href)")
    assert any(link.endswith(f".{name}") for link in links[:4]), links
    assert not complaints
    page.close()
