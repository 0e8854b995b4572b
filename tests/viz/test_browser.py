"""The head view in a browser: by pointer and by keys, in light and dark, with hostile tokens and with many."""

import json
from statistics import median

import numpy as np
import pytest

from attention_xp.viz import head_view
from attention_xp.viz._page import static
from tests.viz._weights import tokens_of, weights_of

LAYERS, HEADS, LENGTH = 3, 4, 10


def open_page(browser, path, **options):
    """Open a file; what it asks for and complains of is kept in `asked` and `complaints`."""
    page = browser.new_page(viewport={"width": 1100, "height": 760}, **options)
    page.complaints, page.asked = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("dialog", lambda dialog: page.complaints.append(dialog.message))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("[role=gridcell][aria-selected=true]")
    settle(page)
    return page


def settle(page):
    """Wait until what has changed is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def ink(page):
    """The pixels of the lines: how many there are, and their mean colour."""
    settle(page)
    return page.evaluate(
        """() => {
            const lines = document.querySelector(".axp-lines"), copy = document.createElement("canvas");
            Object.assign(copy, { width: lines.width, height: lines.height });
            const context = copy.getContext("2d", { willReadFrequently: true });
            context.drawImage(lines, 0, 0);
            const { data } = context.getImageData(0, 0, copy.width, copy.height);
            let count = 0, sum = [0, 0, 0];
            for (let i = 0; i < data.length; i += 4)
                if (data[i + 3] > 200) { count++; for (let c = 0; c < 3; c++) sum[c] += data[i + c]; }
            return { count, colour: sum.map((x) => x / count) };
        }"""
    )


def shown(page):
    """The layer and the head that are shown, by name and by the mark in the grid."""
    name = page.locator(".axp-status strong").inner_text()
    marked = page.locator("[role=gridcell][aria-selected=true]")
    assert marked.count() == 1
    assert marked.get_attribute("tabindex") == "0"
    assert name.rstrip(".").lower() == marked.get_attribute("aria-label")
    return name


def shares(page, side):
    """The numbers beside the tokens of a side."""
    return page.locator(f".axp-{side} .axp-share").all_inner_texts()


def option(page, side, i):
    return page.locator(f".axp-{side} [role=option]").nth(i)


def assert_shares(texts, weights):
    """Numbers are right to the digits that are shown, and to the steps of the codes."""
    for text, weight in zip(texts, weights, strict=True):
        rounded = 0.5 if weight > 0.09 else 0.05
        assert float(text.removesuffix(" %") or 0) == pytest.approx(100 * weight, abs=rounded + 0.4 * weight**0.5)


@pytest.fixture(scope="module")
def weights():
    return [weights_of(1, HEADS, LENGTH, LENGTH, seed=i) for i in range(LAYERS)]


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("view") / "view.html"
    head_view(weights, tokens_of(LENGTH), layer=1, head=2).save(path)
    return path


@pytest.fixture
def page(browser, path):
    page = open_page(browser, path)
    yield page
    assert page.complaints == []
    assert page.asked == [path.as_uri()]  # nothing but the file itself
    page.close()


def test_it_shows_what_was_asked_for(page):
    assert shown(page) == "Layer 1, head 2."
    assert page.locator("[role=gridcell]").count() == LAYERS * HEADS
    assert page.locator(".axp-query .axp-token").all_inner_texts() == tokens_of(LENGTH)
    assert page.locator(".axp-about, .axp-muted").first.inner_text() == "Lines: all 55 weights above 0."
    assert ink(page)["count"] > 1000
    assert set(shares(page, "key")) == {""}


def test_pointing_at_a_token_shows_its_lines_alone(page, weights):
    everything = ink(page)
    option(page, "query", 6).hover()
    assert 0 < ink(page)["count"] < everything["count"]
    assert_shares(shares(page, "key"), weights[1][0, 2, 6])
    detail = page.locator(".axp-detail").inner_text()
    best = int(weights[1][0, 2, 6].argmax())
    assert detail.startswith(f"Query 6 “{tokens_of(LENGTH)[6]}” attends {best} “{tokens_of(LENGTH)[best]}” ")
    option(page, "key", 1).hover()
    assert_shares(shares(page, "query"), weights[1][0, 2, :, 1])
    assert page.locator(".axp-detail").inner_text().startswith("Key 1 “token1” is attended by ")
    assert page.locator(".axp-body .axp-muted").inner_text() == "Lines: 9 of 55 weights, of this key."
    page.mouse.move(5, 5)
    assert ink(page) == everything


def test_the_colour_tells_queries_from_keys(page):
    option(page, "query", 9).hover()
    red, _, blue = ink(page)["colour"]
    assert blue > red + 60
    option(page, "key", 0).hover()
    red, _, blue = ink(page)["colour"]
    assert red > blue + 60


def test_another_head_has_other_lines(page, weights):
    option(page, "query", 5).click()
    page.mouse.move(5, 5)
    seen = {str(ink(page))}
    for layer in range(LAYERS):
        for head in range(HEADS):
            page.get_by_role("gridcell", name=f"layer {layer}, head {head}", exact=True).click()
            assert shown(page) == f"Layer {layer}, head {head}."
            assert_shares(shares(page, "key"), weights[layer][0, head, 5])  # the token stays chosen
            seen.add(str(ink(page)))
    assert len(seen) == LAYERS * HEADS
    option(page, "query", 5).click()  # once more lets it go
    page.mouse.move(5, 5)
    settle(page)
    assert set(shares(page, "key")) == {""}


def test_the_keyboard_suffices(page, weights):
    press = page.keyboard.press
    press("Tab")  # to the thumbnails
    for key, name in [
        ("ArrowRight", "Layer 1, head 3."),
        ("ArrowRight", "Layer 1, head 3."),  # the last stays
        ("ArrowDown", "Layer 2, head 3."),
        ("Home", "Layer 2, head 0."),
        ("PageUp", "Layer 0, head 0."),
        ("End", "Layer 0, head 3."),
        ("ArrowLeft", "Layer 0, head 2."),
    ]:
        press(key)
        assert shown(page) == name
        focused = page.evaluate("() => document.activeElement.getAttribute('aria-label')")
        assert focused == name.rstrip(".").lower()
    assert focus_ring(page)
    everything = ink(page)
    press("Tab")  # to the queries
    assert focus_ring(page)
    for key, i in [("ArrowDown", 0), ("ArrowDown", 1), ("End", 9), ("ArrowUp", 8), ("Home", 0), ("PageDown", 9)]:
        press(key)
        assert page.locator("[role=option][aria-selected=true]").get_attribute("id").endswith(f"-query-{i}")
        active = page.evaluate("() => document.activeElement.getAttribute('aria-activedescendant')")
        assert active.endswith(f"-query-{i}")
        assert_shares(shares(page, "key"), weights[0][0, 2, i])
    press("Tab")  # to the keys
    press("ArrowDown")
    assert_shares(shares(page, "query"), weights[0][0, 2, :, 0])
    press("Escape")
    assert ink(page) == everything


def focus_ring(page):
    """Whether an outline shows where the focus is."""
    return page.evaluate(
        """() => {
            const style = getComputedStyle(document.activeElement);
            return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
        }"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 380])
def test_it_is_accessible(browser, path, scheme, width):
    from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415  # the fixture has asked for it

    page = open_page(browser, path, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 760})
    for side, i in ((None, 0), ("query", 7), ("key", 0)):
        if side:
            option(page, side, i).click()
            page.wait_for_timeout(200)  # colours change by and by
        found = Axe().run(page).response
        assert [(rule["id"], rule["help"], rule["nodes"][0]["html"]) for rule in found["violations"]] == []
        assert len(found["passes"]) > 20
    page.close()


def test_light_and_dark(browser, path):
    page = open_page(browser, path, color_scheme="light")
    grounds, lines = [], []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        settle(page)
        colour = page.evaluate("() => getComputedStyle(document.querySelector('.axp')).backgroundColor")
        grounds.append(sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))))
        lines.append(sum(ink(page)["colour"]))
    assert grounds[0] > 700
    assert grounds[1] < 100
    assert lines[1] > lines[0] + 100  # drawn anew, lighter on dark
    page.close()


def test_nothing_moves_where_that_is_wished(browser, path):
    for motion, expected in (("reduce", "0s"), ("no-preference", "0.1s")):
        page = open_page(browser, path, reduced_motion=motion)
        time = page.evaluate("() => getComputedStyle(document.querySelector('[role=option]')).transitionDuration")
        assert time == expected
        page.close()


HOSTILE = [
    "</script><script>alert('run')</script>", "<img src=x onerror=alert('run')>", "<b>bold</b>", "&amp;", "{{1}}",
    "\x00\x1b[2J\n", "\u202eright to left", "\ud800", " ", "",
]  # fmt: skip
VISIBLE = [*HOSTILE[:5], r"\x00\x1b[2J\n", r"\u202eright to left", r"\ud800", "␣", "(empty)"]


def test_tokens_are_shown_and_never_run(browser, tmp_path):
    path = tmp_path / "view.html"
    head_view(weights_of(10, 10), HOSTILE).save(path)
    page = open_page(browser, path)
    for side in ("query", "key"):
        assert page.locator(f".axp-{side} .axp-token").all_text_contents() == VISIBLE
        for i in range(10):
            option(page, side, i).hover()
            assert f"{i} “{VISIBLE[i]}”" in page.locator(".axp-detail").text_content()
    assert page.locator("#attention-view script, #attention-view img, #attention-view b").count() == 0
    assert page.complaints == []
    assert page.asked == [path.as_uri()]
    page.close()


def test_a_script_that_had_got_in_would_not_run(browser, path, tmp_path):
    changed = tmp_path / "view.html"
    text = path.read_text("utf-8").replace("<main>", "<main><script>window.hasRun = true</script><img src='x.png'>")
    changed.write_text(text, "utf-8")
    page = open_page(browser, changed)
    assert page.evaluate("() => window.hasRun") is None
    assert len(page.complaints) == 2  # the policy names both
    page.close()


def test_many_tokens_are_quick(browser, tmp_path):
    path = tmp_path / "view.html"
    head_view([weights_of(1, 12, 512, 512, seed=i) for i in range(6)], tokens_of(512)).save(path)
    page = open_page(browser, path)
    times = page.evaluate(
        """async () => {
            const cells = [...document.querySelectorAll("[role=gridcell]")].slice(5, 26), times = [];
            const lines = document.querySelector(".axp-lines"), copy = document.createElement("canvas");
            const context = copy.getContext("2d", { willReadFrequently: true });
            for (const cell of cells) {
                const start = performance.now();
                cell.click();
                await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
                context.drawImage(lines, 0, 0);
                context.getImageData(0, 0, 1, 1);  // waits until it is drawn
                times.push(performance.now() - start);
            }
            return times;
        }"""
    )
    assert median(times) < 100
    assert "largest of 1" in page.locator(".axp-muted").first.inner_text()
    option(page, "query", 500).scroll_into_view_if_needed()
    option(page, "query", 500).hover()
    assert ink(page)["count"] > 50
    assert page.locator(".axp-detail").inner_text().endswith(" more.")
    page.close()


def test_weights_that_are_all_the_same(browser, tmp_path):
    path = tmp_path / "view.html"
    head_view(np.full((80, 80), 1 / 80), tokens_of(80)).save(path)
    page = open_page(browser, path)
    assert page.locator(".axp-muted").first.inner_text().startswith("More than 2,500 weights are equally large")
    assert ink(page)["count"] == 0
    option(page, "query", 3).hover()
    assert ink(page)["count"] > 50
    page.close()


def test_other_tokens_for_queries_and_keys(browser, tmp_path):
    path = tmp_path / "view.html"
    head_view(weights_of(3, 9), (tokens_of(3), tokens_of(9))).save(path)
    page = open_page(browser, path)
    assert (page.locator(".axp-query [role=option]").count(), page.locator(".axp-key [role=option]").count()) == (3, 9)
    option(page, "key", 8).hover()
    assert_shares(shares(page, "query"), weights_of(3, 9)[:, 8])
    page.close()


def test_the_chosen_thumbnail_is_seen_among_many(browser, tmp_path):
    path = tmp_path / "view.html"
    head_view([weights_of(1, 30, 3, 3)] * 40, tokens_of(3), layer=39, head=29).save(path)
    page = open_page(browser, path)
    seen = """() => {
        const cell = document.querySelector("[role=gridcell][aria-selected=true]").getBoundingClientRect();
        const box = document.querySelector(".axp-picker").getBoundingClientRect();
        return cell.left >= box.left && cell.right <= box.right && cell.top >= box.top && cell.bottom <= box.bottom;
    }"""
    assert page.evaluate(seen)
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    page.keyboard.press("PageUp")
    assert shown(page) == "Layer 0, head 0."
    assert page.evaluate(seen)
    assert page.evaluate("() => window.scrollY") == 0
    page.close()


@pytest.mark.parametrize("width", [340, 700, 1100])
@pytest.mark.parametrize("length", [3, 15, 200])
def test_all_is_in_sight_in_a_frame(browser, tmp_path, width, length):
    view = head_view([weights_of(1, 12, length, length)] * 6, tokens_of(length))
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body style='margin:0'>{view._repr_html_()}", "utf-8")
    page = browser.new_page(viewport={"width": width, "height": 1200})
    page.goto(path.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator(".axp-query [role=option]").first.click()
    height = page.locator("iframe").bounding_box()["height"]
    detail = frame.locator(".axp-detail").bounding_box()
    lists = frame.locator(".axp-scroll").bounding_box()
    # No picture is cut, and no frame is empty below.
    assert height - 60 < detail["y"] + detail["height"] < height or length == 3
    assert lists["height"] >= min(16 + length * view._view.about["row"], 460)
    page.close()


@pytest.mark.parametrize("width", [320, 420, 1100])
def test_the_middle_shrinks_before_tokens(browser, tmp_path, width):
    words = ["[CLS]", "animal", "because", "street", "tired"]
    head_view(np.full((5, 5), 0.2), words).save(tmp_path / "view.html")
    page = open_page(browser, tmp_path / "view.html")
    page.set_viewport_size({"width": width, "height": 760})
    option(page, "query", 4).click()
    settle(page)
    cut = "(all) => all.filter((each) => each.scrollWidth > each.clientWidth + 1).map((each) => each.textContent)"
    assert page.locator(".axp-token").evaluate_all(cut) == []
    assert page.locator(".axp-lines").bounding_box()["width"] >= 40
    page.close()


MODEL = """
const changes = {};
const values = { layer: 1, head: 2, _about: ABOUT, _codes: bytes(CODES), _thumbs: bytes(THUMBS) };
function bytes(text) { return new DataView(Uint8Array.from(text).buffer); }
window.model = {
  saved: 0,
  get: (name) => values[name],
  set: (name, value) => {
    const isNew = values[name] !== value;
    values[name] = value;
    if (isNew) changes[`change:${name}`]?.forEach((f) => f());
  },
  save_changes: () => { window.model.saved++; },
  on: (name, f) => { (changes[name] ??= []).push(f); },
  off: (name, f) => { changes[name] = changes[name].filter((other) => other !== f); window.model.left = Object.values(changes).flat().length; },
};
window.stop = exported.render({ model: window.model, el: document.getElementById("view") });
"""


def test_the_widget_and_its_model_follow_each_other(browser, weights, tmp_path):
    about = head_view(weights, tokens_of(LENGTH))._view
    script = (static("head_view.js") + static("widget.js")).replace("export default", "const exported =")
    model = (
        MODEL.replace("ABOUT", json.dumps(about.about))
        .replace("CODES", str(about.codes.ravel().tolist()))
        .replace("THUMBS", str(about.thumbs.ravel().tolist()))
    )
    path = tmp_path / "widget.html"
    style = static("head_view.css")
    path.write_text(
        f"<!doctype html><meta charset=utf-8><style>{style}</style><div id=view></div><script type=module>{script}{model}</script>",
        "utf-8",
    )
    page = open_page(browser, path)
    assert shown(page) == "Layer 1, head 2."
    page.get_by_role("gridcell", name="layer 0, head 3").click()
    assert page.evaluate("() => [model.get('layer'), model.get('head'), model.saved]") == [0, 3, 1]
    page.evaluate("() => { model.set('layer', 2); model.set('head', 1); }")
    assert shown(page) == "Layer 2, head 1."
    option(page, "query", 4).hover()
    assert_shares(shares(page, "key"), weights[2][0, 1, 4])
    red = ink(page)["colour"][0]
    page.evaluate("() => { document.body.dataset.jpThemeLight = 'false'; }")  # as JupyterLab tells its theme
    assert ink(page)["colour"][0] > red + 60
    assert page.evaluate("() => { stop(); return model.left; }") == 0
    assert page.complaints == []
    page.close()
