"""The Photo tab, the network's selector and the links, as a visitor drives them in Chromium."""

import base64
import csv
import io
import json
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import gradio as gr
import httpx
import numpy as np
import pytest
from conftest import PAGE_LABELS, PATIENCE, files_in, late_answers, serious_violations, wait_until, with_browser
from gradio.data_classes import FileData, ImageData
from gradio.exceptions import Error
from gradio_client import Client, handle_file
from PIL import Image, ImageColor
from playwright.sync_api import Locator, Page, expect
from test_endurance import Visitor

import emotion.ui
from emotion.networks import load_networks
from emotion.predict import EmotionPredictor
from emotion.ui.inputs import EXAMPLES, example_input, photo_input, photos_input
from emotion.ui.look import COLOURS, poster


def give(page: Page, photo: Path) -> None:
    page.set_input_files("#photo-input input[type=file]", photo)


def give_several(page: Page, *photos: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose several photos at once").click()
    chooser.value.set_files(photos)


def summary(page: Page) -> Locator:
    return page.locator("#photo-summary")


def query(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.evaluate("location.href")).query)


def wait_for_query(page: Page, **wanted: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while query(page) != {name: [value] for name, value in wanted.items()}:
        assert time.monotonic() < deadline, query(page)
        page.wait_for_timeout(100)


def decoded(picture: Locator) -> np.ndarray:
    """The pixels of an <img> whose address holds them, int (H, W, 3)."""
    content = base64.b64decode(picture.get_attribute("src").partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


@pytest.fixture
def served_alone(checkpoints, tmp_path, monkeypatch):
    """A page with one network that deletes after a second, in this process: its Blocks, and its folder of uploads."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(emotion.ui, "SWEEP_SECONDS", 1)
    monkeypatch.setattr(emotion.ui, "KEEP_SECONDS", 1)
    page = emotion.ui.build_page(load_networks(checkpoints / "first"))
    page.launch(prevent_thread_lock=True, quiet=True, **emotion.ui.launch_options())
    yield page, tmp_path
    page.close()


def test_networks_are_offered_by_name(checkpoints, monkeypatch):
    both = load_networks(checkpoints)
    assert list(both) == ["first", "second"]
    assert [network.threshold for network in both.values()] == [0, 1]
    assert list(load_networks(checkpoints / "second")) == ["second"]
    assert next(iter(load_networks())) == "ferplus"
    monkeypatch.chdir(checkpoints / "second")
    assert list(load_networks(".")) == ["second"]


def test_a_folder_without_a_network_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        load_networks(tmp_path)


def test_uploads_are_deleted_and_one_network_has_no_selector(served_alone, photos):
    page, uploads = served_alone
    [selector] = [part for part in page.get_config_file()["components"] if part["props"].get("elem_id") == "network"]
    assert selector["props"]["visible"] is False
    with open(photos["pair.jpg"], "rb") as file:
        [path] = httpx.post(f"{page.local_url}gradio_api/upload", files={"files": file}, timeout=PATIENCE).json()
    assert Path(path).is_relative_to(uploads)
    wait_until(lambda: not files_in(uploads))


def test_what_a_visitor_gave_and_got_is_not_kept_in_memory(served_alone, photos):
    page, _ = served_alone
    client = Client(page.local_url, verbose=False)
    assert client.predict(handle_file(photos["pair.jpg"]), api_name="/predict")["image"] == "pair.jpg"
    kept = str(list(page.state_holder[client.session_hash].components))
    assert "photo-input" in kept and "pair.jpg" not in kept and "confidence" not in kept


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_no_input_takes_a_file_of_the_server(photos, meta):
    path = str(photos["person.png"])
    with gr.Blocks():
        photo, several = photo_input("photo", example_input("example")), photos_input("Several", "several")
    with pytest.raises(Error, match="'person.png' was not uploaded"):
        photo.preprocess(ImageData(path=path, **meta))
    with pytest.raises(Error, match="'person.png' was not uploaded"):
        several.preprocess(several.data_model([FileData(path=path, **meta)]))
    example = str(EXAMPLES["happy"])
    assert photo.preprocess(ImageData(path=example)) == example


def test_poster_holds_the_photo_and_bars_as_long_as_the_probabilities(page_predictor, photos):
    photo = Image.open(photos["pair.jpg"])
    faces = page_predictor.predict(photo)
    pixels = np.asarray(poster(photo, faces, 0.0)).astype(int)
    margin, scale = 24, (1040 - 48) / 1100
    # A corner of the photo, without a face.
    corner = photo.crop((0, 400, 300, 600)).resize((round(300 * scale), round(200 * scale)), Image.Resampling.BICUBIC)
    top = margin + round(400 * scale)
    shown = pixels[top : top + corner.height, margin : margin + corner.width]
    assert np.abs(shown - np.asarray(corner)).mean() < 8
    for face in faces:
        x, y = round(margin + face.box[0] * scale), round(margin + (face.box[1] + face.box[3] / 2) * scale)
        assert (pixels[y, x - 1 : x + 2] == 255).all(axis=1).any()
    names = [name for name in PAGE_LABELS if name in COLOURS]
    drawn = np.array([(pixels == ImageColor.getrgb(COLOURS[name])).all(axis=2).sum() for name in names])
    wanted = np.array([sum(face.probabilities[name] for face in faces) for name in names])
    assert drawn / drawn.sum() == pytest.approx(wanted / wanted.sum(), abs=0.03)


@with_browser
def test_selector_switches_the_network_which_may_find_no_class_clear(page, photos, checkpoints):
    give(page, photos["person.png"])
    expect(summary(page)).to_contain_text("most likely")
    page.get_by_role("radio", name="second").check()
    expect(summary(page)).to_contain_text("no class is clear")
    [face] = EmotionPredictor.from_checkpoint(checkpoints / "second").predict(photos["person.png"])
    best, next_best = sorted(face.probabilities, key=face.probabilities.get)[:-3:-1]
    expect(summary(page)).to_contain_text(f"{best} (")
    expect(summary(page)).to_contain_text(f"or {next_best} (")
    expect(page.locator("#photo-result h2")).to_contain_text(f"{best} or {next_best}? No class is clear")


@with_browser
def test_a_network_that_is_switched_to_and_fro_is_asked_a_few_times_at_most(page, photos, requests):
    give(page, photos["pair.jpg"])
    expect(summary(page)).to_contain_text("2 faces")
    # As over a phone's connection; in milliseconds, without a limit to the bytes.
    slow = {"offline": False, "latency": 200, "downloadThroughput": -1, "uploadThroughput": -1}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    for name in 2 * ("second", "first"):
        page.get_by_role("radio", name=name).check()
        page.wait_for_timeout(100)
    asked = [0]
    while asked[-1] != len(requests):
        asked.append(len(requests))
        assert len(asked) < 20, asked
        page.wait_for_timeout(1000)
    expect(summary(page)).not_to_contain_text("no class is clear")


@with_browser
def test_paste_and_snapshot_are_answered_like_an_upload(page, page_predictor, photos):
    content = base64.b64encode(photos["person.png"].read_bytes()).decode()
    page.evaluate(
        """async data => {
            const blob = await (await fetch('data:image/png;base64,' + data)).blob();
            await navigator.clipboard.write([new ClipboardItem({ 'image/png': blob })]);
        }""",
        content,
    )
    page.locator("#photo-input button[aria-label='Paste from clipboard']").click()
    expect(summary(page)).to_contain_text(page_predictor.predict(photos["person.png"])[0].emotion)
    page.locator("#photo-input button[aria-label='Remove Image']").click()
    expect(page.locator("#photo-result .face")).to_have_count(0)

    page.locator("#photo-input button[aria-label='Capture from camera']").click()
    page.locator("#photo-input").get_by_text("Click to Access Webcam").click()
    # Nobody takes a picture before the camera shows one.
    page.wait_for_function("document.querySelector('#photo-input video')?.videoWidth")
    page.locator("#photo-input button[aria-label='capture photo']").click()
    expect(page.locator("#photo-result .face")).to_have_count(1)
    # The camera's picture is not mirrored: the flag stays on the left of the face.
    box = page.locator("#photo-result .box").bounding_box()
    picture = page.locator("#photo-result .photo").bounding_box()
    assert box["x"] + box["width"] / 2 < picture["x"] + picture["width"] / 2


@with_browser
def test_several_photos_become_a_table_and_a_csv(page, page_predictor, photos):
    give_several(page, *(photos[name] for name in ("pair.jpg", "text.jpg", "cup.jpg")))
    rows = page.locator("#batch-result tbody tr")
    expect(rows).to_have_count(4)
    assert [row.locator("td").first.inner_text() for row in rows.all()] == ["pair.jpg"] * 2 + ["text.jpg", "cup.jpg"]
    wanted = page_predictor.predict(photos["pair.jpg"])
    expect(rows.nth(1)).to_contain_text(wanted[1].emotion)
    expect(rows.nth(2)).to_contain_text("'text.jpg' is not a picture")
    expect(rows.nth(3)).to_contain_text("No face was found")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as CSV").click()
    assert download.value.suggested_filename == "expressions.csv"
    records = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_bytes().decode(), newline="")))
    assert [record["image"] for record in records] == ["pair.jpg", "pair.jpg", "text.jpg", "cup.jpg"]
    for record, face in zip(records, wanted, strict=False):
        values = [float(record[name]) for name in ("x", "y", "width", "height", "score", *PAGE_LABELS)]
        assert values == pytest.approx([*face.box, face.score, *face.probabilities.values()], abs=1e-3)
    assert [bool(record["error"]) for record in records] == [False, False, True, True]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@with_browser
def test_more_photos_than_the_page_takes_are_refused(page, photos, tmp_path):
    files = [tmp_path / f"{number}.txt.jpg" for number in range(51)]
    for file in files:
        file.write_text(file.name)
    give_several(page, *files)
    expect(page.locator("#batch-result")).to_contain_text("These are 51 photos; give up to 50 at once")


@with_browser
def test_result_card_can_be_saved(page, page_predictor, photos):
    give(page, photos["person.png"])
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as a picture").click()
    assert download.value.suggested_filename == "expression.png"
    card = Image.open(download.value.path())
    photo = Image.open(photos["person.png"])
    wanted = poster(photo, page_predictor.predict(photo), 0.0)
    assert (card.format, card.size) == ("PNG", wanted.size)
    assert np.abs(np.asarray(card).astype(int) - np.asarray(wanted)).mean() < 0.1


@with_browser
def test_evidence_is_shown_over_the_face_on_request(page, page_predictor, photos):
    give(page, photos["person.png"])
    figures = page.locator("#photo-result figure img")
    expect(figures).to_have_count(1)
    page.get_by_label("Show where the evidence lies").check()
    expect(figures).to_have_count(2)
    [face] = page_predictor.predict(photos["person.png"])
    map = page_predictor.evidence(face.crop, face.emotion)
    pixels = decoded(figures.nth(1))
    orange = (pixels[..., 0] - pixels[..., 2]).reshape(48, 6, 48, 6).mean((1, 3))
    assert np.corrcoef(orange.ravel(), map.ravel())[0, 1] > 0.95
    page.get_by_label("Show where the evidence lies").uncheck()
    expect(figures).to_have_count(1)


def test_a_picture_to_save_needs_a_face(url, photos):
    with httpx.Client(base_url=f"{url}gradio_api/", timeout=PATIENCE) as http:
        visitor = Visitor(http, httpx.get(f"{url}config", timeout=PATIENCE).json())
        for photo in (None, visitor.upload(photos["cup.jpg"])):
            visitor.start("photo-save", "click", ["first", photo, None])
            with pytest.raises(AssertionError, match="There is no face to draw any more; give the photo again"):
                visitor.answers()


def test_inputs_stay_guarded_when_an_example_was_chosen_and_left(url, photos):
    with httpx.Client(base_url=f"{url}gradio_api/", timeout=PATIENCE) as http:
        visitor = Visitor(http, httpx.get(f"{url}config", timeout=PATIENCE).json())
        assert "happy.png" in visitor.ask("photo-example", "change", ["happy"])
        # Nothing is put into the input, and the visitor's copy of it is not replaced by a fresh one.
        assert json.loads(visitor.ask("photo-example", "change", [None])) == [{"__type__": "update"}]
        visitor.start("photo-input", "change", ["first", {"path": str(photos["person.png"])}, False, None, None])
        with pytest.raises(AssertionError, match="upload it and give the path"):
            visitor.answers()


def test_nothing_but_a_chosen_example_is_put_into_an_input(url):
    config = httpx.get(f"{url}config", timeout=PATIENCE).json()
    names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
    inputs = {"photo-input", "batch-input", "live-camera", "video-input", "augmentation-input"}
    assert inputs <= set(names.values())
    put = [
        (names[output], [(names[component], event) for component, event in function["targets"]])
        for function in config["dependencies"]
        for output in function["outputs"]
        if function["backend_fn"] and names[output] in inputs
    ]
    tabs = ("photo", "video", "augmentation")
    assert put == [(f"{tab}-input", [(f"{tab}-example", "change")]) for tab in tabs]


def test_a_photo_that_is_given_twice_is_looked_at_once(url, photos):
    with httpx.Client(base_url=f"{url}gradio_api/", timeout=PATIENCE) as http:
        visitor = Visitor(http, httpx.get(f"{url}config", timeout=PATIENCE).json())
        photo, other, bad = (visitor.upload(photos[name]) for name in ("person.png", "pair.jpg", "text.jpg"))
        given = ["first", photo, False, None, None]
        assert "One face was found" in visitor.ask("photo-input", "change", given)
        again = json.loads(visitor.ask("photo-input", "change", given))
        assert all(part["__type__"] == "update" and "value" not in part for part in again[:4])
        # But what has changed since is looked at.
        for change in (["second", photo, False], ["second", photo, True], ["first", photo, False]):
            assert "figure" in visitor.ask("photo-input", "change", [*change, None, None])
        assert "taken for one face" in visitor.ask("photo-whole", "click", ["first", photo, False])
        # The same photo stays taken for one face, by another network, too; not so the next one.
        assert "taken for one face" in visitor.ask("photo-evidence", "input", ["second", photo, False, None, None])
        assert "2 faces were found" in visitor.ask("photo-input", "change", ["second", other, False, None, None])
        assert "One face was found" in visitor.ask("photo-input", "change", given)
        for _ in range(2):
            assert "is not a picture" in visitor.ask("photo-input", "change", ["first", bad, False, None, None])


@with_browser
def test_a_tab_that_is_opened_before_the_link_is_restored_stays_open(browser, url):
    page = browser.new_page()
    held, is_held = [], True
    page.route("**/queue/join*", lambda route: held.append(route) if is_held else route.continue_())
    page.goto(f"{url}?tab=augmentation&seed=7")
    expect(page.get_by_role("tab", name="Augmentation")).to_have_attribute("aria-selected", "true")
    page.get_by_role("tab", name="Video").click()
    while not held:
        page.wait_for_timeout(100)
    is_held = False
    for route in held:
        route.continue_()
    seed = page.locator("#augmentation-seed input[type=number]")
    expect(seed).to_have_value("7")
    expect(page.get_by_role("tab", name="Video")).to_have_attribute("aria-selected", "true")
    wait_for_query(page, tab="video", network="first")
    page.close()


@with_browser
@pytest.mark.parametrize(
    ("link", "elem_id", "wanted"),
    [
        ("tab=photo&network=second", "photo", ".face"),
        ("tab=augmentation&seed=7", "augmentation", ".steps img"),
        ("tab=video&network=second", "video", ".followed"),
    ],
)
def test_what_is_given_while_a_link_is_restored_is_shown(browser, url, photos, clip, link, elem_id, wanted):
    page = browser.new_page()
    # Only restoring, the request without any value, and what is given are answered on time.
    with late_answers(page, lambda body: '"data":[]' not in body and "/uploads/" not in body):
        with page.expect_request(lambda sent: "/queue/join" in sent.url and '"data":[]' not in sent.post_data):
            page.goto(f"{url}?{link}")
        with page.expect_response("**/upload?*"):
            file = clip if elem_id == "video" else photos["person.png"]
            page.set_input_files(f"#{elem_id}-input input[type=file]", file)
        page.wait_for_timeout(3000)  # The answer to it may come, or wait until the others are there.
    shown = page.locator(f"#{elem_id}-result {wanted}").first
    expect(shown).to_be_visible()
    page.wait_for_timeout(1000)
    expect(shown).to_be_visible()
    page.close()


@with_browser
def test_link_restores_network_and_example_but_never_a_photo(page, url, photos):
    page.get_by_role("radio", name="second").check()
    page.get_by_role("radio", name="happy").check()
    expect(summary(page)).to_contain_text("no class is clear")
    wait_for_query(page, tab="photo", network="second", example="happy")
    said = summary(page).inner_text()

    page.goto(page.evaluate("location.href"))
    expect(summary(page)).to_have_text(said)
    expect(page.get_by_role("radio", name="happy")).to_be_checked()
    expect(page.get_by_role("radio", name="second")).to_be_checked()
    wait_for_query(page, tab="photo", network="second", example="happy")

    give(page, photos["pair.jpg"])
    expect(summary(page)).to_contain_text("2 faces")
    wait_for_query(page, tab="photo", network="second")

    page.goto(f"{url}?tab=none&network=<b>&example=../person&other=kept")
    wait_for_query(page, tab="photo", network="first", other="kept")
    expect(page.get_by_role("radio", name="first")).to_be_checked()
    expect(page.locator("#photo-result .face")).to_have_count(0)


@with_browser
@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_axe_finds_no_serious_violation_on_any_tab(page, photos):
    give_several(page, photos["pair.jpg"], photos["text.jpg"])
    expect(page.locator("#batch-result tbody tr")).to_have_count(3)
    for name, (title, _) in emotion.ui.TABS.items():
        page.get_by_role("tab", name=title).click()
        if page.locator(f"#{name}-example").count():
            page.locator(f"#{name}-example").get_by_role("radio").first.check()
            expect(page.locator(f"#{name}-result img").first).to_be_visible()
        assert not serious_violations(page), name
