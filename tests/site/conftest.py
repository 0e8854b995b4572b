"""The documentation as ``nox -s docs`` has built it."""

import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests._browser import browser

__all__ = ["browser"]

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "_build" / "html"


class Page(HTMLParser):
    """What a page refers to, where one can jump to in it, what its pictures say, and the text of its article."""

    def __init__(self, path):
        super().__init__()
        self.path, self.references, self.anchors, self.text, self.depth = path, [], set(), [], 0
        self.pictures = {}  # alternative texts by addresses
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        self.references += [given[name] for name in ("href", "src") if given.get(name)]
        self.depth += tag == "article"
        if tag == "img" and self.depth:
            self.pictures[given["src"]] = given.get("alt", "")

    def handle_endtag(self, tag):
        self.depth -= tag == "article"

    def handle_data(self, data):
        if self.depth:
            self.text.append(data)


@pytest.fixture(scope="session")
def site():
    """The folder of the site; a skip where it is not built."""
    if not (SITE / "index.html").exists():
        pytest.skip("the documentation is not built: nox -s docs does that")
    return SITE


@pytest.fixture(scope="session")
def pages(site):
    """All pages by their paths in the site."""
    return {str(path.relative_to(site)): Page(path) for path in sorted(site.rglob("*.html"))}


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and does not talk about it."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if self.path == "/favicon.ico":  # which browsers ask for by themselves
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()


@pytest.fixture(scope="session")
def address(site):
    """Where the site is served, to this machine alone."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
