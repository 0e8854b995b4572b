"""What the page about the design says of the code is found there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "design.md").read_text("utf-8")
NOT_WRITTEN = {"_engine/walkers/tinygrad/walker.py"}  # an example of a walker to come

# `name` in `file.py`, and `name` (`file.py`)
PLACES = re.findall(r"`([A-Za-z_][\w.]*)`\*{0,2}\s(?:in\s|\()`([\w/]+\.py)`", PAGE)


def _texts(path: str) -> list[str]:
    """The text of each file whose path ends so."""
    folders = [ROOT / name for name in ("attention_xp", "tests")]
    files = [ROOT / path, *(file for folder in folders for file in folder.rglob(Path(path).name))]
    return [file.read_text("utf-8") for file in files if file.is_file() and file.match(path)]


def test_the_search_finds_places():
    assert ("Problem.of", "problem/problem.py") in PLACES
    assert ("two_to", "compiled/powers.py") in PLACES


def test_names_occur_in_the_files_in_which_they_are_said_to_be():
    wrong = [
        f"{name} in {path}"
        for name, path in PLACES
        if not any(all(re.search(rf"\b{part}\b", text) for part in name.split(".")) for text in _texts(path))
    ]
    assert wrong == []


def test_files_that_are_named_exist():
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE)) - NOT_WRITTEN
    assert sorted(path for path in named if not _texts(path)) == []
