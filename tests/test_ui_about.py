"""The tab about the model says what the checkpoint has measured, and nothing else."""

import re
from collections.abc import Iterator

import httpx
import pytest
import torch
from conftest import PATIENCE, late_answers, serious_violations, with_browser
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from emotion.checkpoint import save_checkpoint
from emotion.model import EmotionCNN
from emotion.networks import load_networks
from emotion.ui import build_page, launch_options

LABELS = ("joy", "anger")
PLAIN = {
    "split": "PublicTest",
    "label_set": "fer2013",
    "labels": list(LABELS),
    "rows": 1020,
    "accuracy": 0.6543,
    "interval": [0.6247, 0.6831],
    "balanced_accuracy": 0.6501,
    "ece": 0.0317,
    "per_class": {
        "joy": {"rows": 20, "precision": 0.6154, "recall": 0.8, "f1": 0.6957},
        "anger": {"rows": 1000, "precision": 0.9969, "recall": 0.65, "f1": 0.7869},
    },
    "confusion": [[16, 4], [350, 650]],
    "reliability": [
        {"confidence": 0.55, "accuracy": 0.51, "rows": 600},
        {"confidence": 0.93, "accuracy": 0.88, "rows": 420},
    ],
}
METRICS = {
    "plain": PLAIN,
    "unseen": PLAIN | {"rows": 917, "accuracy": 0.6412},
    "robustness": {"split": "PublicTest", "rows": 1020, "accuracy": {"blur": [0.61, 0.52, 0.4321]}},
    "clear_answer": {"split": "PublicTest", "rows": 1020, "threshold": 0.48, "share": 0.755, "accuracy": 0.731},
}
HISTORY = [{"epoch": epoch, "validation_accuracy": accuracy} for epoch, accuracy in ((1, 0.25), (2, 0.5), (3, 0.65))]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page with a network that was measured, one that was not, and one with metadata of another program."""
    folder = tmp_path_factory.mktemp("about")
    torch.manual_seed(0)
    save_checkpoint(EmotionCNN(2, labels=LABELS), folder / "measured", history=HISTORY, metrics=METRICS)
    Image.new("RGB", (37, 23), "teal").save(folder / "measured" / "confusion.png")
    Image.new("RGB", (41, 29), "teal").save(folder / "measured" / "curves.png")
    save_checkpoint(EmotionCNN(2, labels=LABELS), folder / "bare")
    hostile = ("![joy](http://192.0.2.1/joy.png)", "<img src=x onerror='window.hostile = true'>")
    odd = {"plain": {"confusion": [["?"]], "reliability": 3, "accuracy": "high"}, "robustness": [], "tta": None}
    save_checkpoint(EmotionCNN(2, labels=hostile), folder / "odd", metrics=odd, training_config=[1])
    (folder / "odd" / "history.json").write_text("{")
    Image.new("RGB", (41, 29), "teal").save(folder / "odd" / "curves.png")
    (folder / "odd" / "reliability.png").write_text("no picture")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        page = build_page(load_networks(folder))
        yield page.launch(prevent_thread_lock=True, quiet=True, **launch_options())[1]
        page.close(verbose=False)


@pytest.fixture(params=["light"])
def page(request: pytest.FixtureRequest, browser: Browser, url: str) -> Iterator[Page]:
    """The tab on a phone, opened by a link to the measured network; its parameter is the colour scheme."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=request.param)
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    page.goto(f"{url}?tab=about&network=measured")
    expect(page.locator("#about-card h2").first).to_have_text("measured")
    yield page
    context.close()


def cells(page: Page, heading: str) -> list[list[str]]:
    """The first table below a heading."""
    table = page.locator(f"#about-card :is(h2, h3):text-is('{heading}') ~ .scrolling table").first
    return [row.locator("th, td").all_inner_texts() for row in table.locator("tr").all()]


@with_browser
@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_measured_network_shows_its_figures_and_pictures(page):
    figures, *_, unseen = cells(page, "Figures")[1:]
    assert figures == ["one view", "PublicTest", "fer2013", "1,020", "65.4%", "62.5% to 68.3%", "65.0%", "3.2%"]
    assert unseen[3:5] == ["917", "64.1%"]
    assert cells(page, "Per class")[1:] == [
        ["joy", "20", "61.5%", "80.0%", "69.6%"],
        ["anger", "1,000", "99.7%", "65.0%", "78.7%"],
    ]
    assert cells(page, "Confusion matrix") == [["", "joy", "anger"], ["joy", "16", "4"], ["anger", "350", "650"]]
    assert cells(page, "Robustness")[1] == ["blur", "61.0%", "52.0%", "43.2%"]
    card = page.locator("#about-card")
    expect(card).to_contain_text("75.5% of the faces get a probability of at least 48.0%; of those answers 73.1%")
    expect(card).to_contain_text("note = {Network measured}")
    expect(card).to_contain_text("deletes it within 4 minutes")
    headings = page.locator("#about-card h2").all_inner_texts()
    assert headings.index("Figures") < headings.index("Limits") < headings.index("Training procedure")
    assert "Use it" not in headings

    pictures = card.locator("img").evaluate_all("all => all.map(i => [i.alt, i.naturalWidth, i.naturalHeight])")
    (confusion, *size), (reliability, width, _), (curves, *other_size) = pictures
    # The checkpoint's own pictures; the one that is missing is drawn.
    assert (size, other_size) == ([37, 23], [41, 29]) and width > 400
    assert "joy is recognised best (80% of its faces), anger worst (65%)" in confusion
    assert "to take anger for joy (35%)" in confusion
    assert "51% at a confidence of 55%, 88% at a confidence of 93%" in reliability and "3.2%" in reliability
    assert "from 25% to 65%" in curves

    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not serious_violations(page)


def test_no_card_is_made_before_its_tab_is_opened(url):
    parts = httpx.get(f"{url}config", timeout=PATIENCE).json()["components"]
    [card] = [part["props"].get("value") for part in parts if part["props"].get("elem_id") == "about-card"]
    assert not card


@with_browser
def test_a_network_that_is_chosen_while_a_card_is_on_its_way_gets_its_own(page, url):
    page.get_by_role("tab", name="Photo").click()
    with late_answers(page, lambda body: '"data":["bare"]' in body):
        with page.expect_request(lambda sent: '"data":["bare"]' in (sent.post_data or "")):
            page.get_by_role("radio", name="bare").check()
        page.get_by_role("tab", name="The model").click()
        page.get_by_role("radio", name="odd").check()
        page.wait_for_timeout(1000)
    expect(page.locator("#about-card h2").first).to_have_text("odd")


@with_browser
def test_what_is_missing_or_foreign_is_called_not_measured(page, url):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for name in ("bare", "odd"):
        page.get_by_role("radio", name=name).check()
        expect(page.locator("#about-card h2").first).to_have_text(name)
        text = page.locator("#about-card").inner_text()
        assert text.lower().count("not measured") >= 5
        assert not re.search(r"\d\.\d%", text)
        assert "does not say how it was trained" in text
        alternatives = page.locator("#about-card img").evaluate_all("all => all.map(i => i.alt)")
        assert alternatives == {"bare": [], "odd": ["Loss and accuracy by epoch"]}[name]
    assert "joy" in text and "onerror" in text
    assert page.evaluate("window.hostile") is None
    assert not [address for address in asked if not address.startswith((url, "data:"))]
