"""Reading a page of the head view as the browser does."""

import base64
import json
from html.parser import HTMLParser

import numpy as np


class _Scripts(HTMLParser):
    """Collects tags, and the texts of scripts and styles."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.inside = [], {}, None

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        kind = dict(attributes).get("type", tag)
        self.inside = kind if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, text):
        if self.inside:
            self.texts[self.inside] = self.texts.get(self.inside, "") + text


def parsed(page):
    """The tags of a page, and the texts of its scripts and styles by their types."""
    reader = _Scripts()
    reader.feed(page)
    return reader.tags, reader.texts


def weights_in(page):
    """The tokens and weights that a page holds."""
    data = json.loads(parsed(page)[1]["application/json"])
    shape = data["about"]["shape"]
    codes = np.stack([np.frombuffer(base64.b64decode(text), np.uint8) for text in data["codes"]])
    return data, data["about"]["scale"] * (codes.reshape(shape) / 255.0) ** 2
