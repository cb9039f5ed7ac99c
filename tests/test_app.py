"""The page as its visitors and clients meet it: app.py in its own process, gradio_client and Chromium in front."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import httpx
import pytest
import skimage.data
import torch
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from emotion.__main__ import main
from emotion.checkpoint import save_checkpoint
from emotion.model import EmotionCNN
from emotion.predict import EmotionPredictor

APP = Path(__file__).resolve().parents[1] / "app.py"
PATIENCE = 120  # Seconds; a loaded machine takes long to import gradio and to start a browser.
# Labels come with a checkpoint, perhaps a stranger's: one of them tries to be markup.
LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "<b>mixed</b> & more")
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]

with_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt-get install -y --no-install-recommends chromium"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    model = EmotionCNN(labels=LABELS)
    with torch.no_grad():
        model.classifier[-1].weight.mul_(200)  # Otherwise all classes are equally likely.
    return save_checkpoint(model, folder / "checkpoint")


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> EmotionPredictor:
    return EmotionPredictor.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def url(folder: Path, checkpoint: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    environment = {**os.environ, "EMOTION_CHECKPOINT": str(checkpoint), "GRADIO_TEMP_DIR": str(folder / "uploads")}
    command = [sys.executable, str(APP), "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "app.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urlopen(address, timeout=10).close()
                break
            except (URLError, OSError):
                assert process.poll() is None and time.monotonic() < deadline, (folder / "app.log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def photos(folder: Path) -> dict[str, Path]:
    """One photo with a face, one with two, one without any, and files that are none."""
    person = Image.fromarray(skimage.data.astronaut())
    pair = Image.new("RGB", (1100, 620), (90, 110, 90))
    pair.paste(person, (0, 0))
    pair.paste(person.resize((400, 400)), (620, 200))
    files = {name: folder / name for name in ("person.png", "pair.jpg", "cup.jpg", "text.jpg", "empty.png", "cut.png")}
    person.save(files["person.png"])
    pair.save(files["pair.jpg"])
    Image.fromarray(skimage.data.coffee()).save(files["cup.jpg"])
    files["text.jpg"].write_text("This is no picture.")
    files["empty.png"].touch()
    files["cut.png"].write_bytes(files["person.png"].read_bytes()[:50_000])
    files["large.png"] = folder / "large.png"
    Image.new("L", (8000, 7500)).save(files["large.png"])
    return files


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def requests() -> list[str]:
    return []


@pytest.fixture(params=["light"])
def page(request: pytest.FixtureRequest, browser: Browser, url: str, requests: list[str]) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=request.param)
    context.set_default_timeout(1000 * PATIENCE)
    expect.set_options(timeout=1000 * PATIENCE)
    page = context.new_page()
    page.on("request", lambda sent: requests.append(sent.url))
    page.goto(url)
    page.locator("#photo-input input[type=file]").wait_for(state="attached")
    yield page
    context.close()


def upload(page: Page, photo: Path) -> None:
    page.set_input_files("#photo-input input[type=file]", photo)


def shown_percent(text: str) -> tuple[float, float]:
    """Bounds of the probability that a percentage on the page stands for."""
    number = int(re.search(r"\d+", text)[0]) / 100
    return (0, 0.01) if "<" in text else (0.99, 1) if ">" in text else (number - 0.0051, number + 0.0051)


def test_predict_is_the_only_public_endpoint_and_needs_one_picture(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(endpoints) == ["/predict"]
    assert [p["parameter_name"] for p in endpoints["/predict"]["parameters"]] == ["image"]


def test_predict_answers_what_the_command_line_prints(client, checkpoint, photos, capsys):
    photo = photos["pair.jpg"]
    assert main(["predict", "--json", "--checkpoint", str(checkpoint), str(photo)]) == 0
    [printed] = json.loads(capsys.readouterr().out)
    item = client.predict(handle_file(photo), api_name="/predict")
    assert item.keys() == printed.keys()
    assert (item["image"], item["error"]) == ("pair.jpg", None)
    assert len(item["faces"]) == len(printed["faces"]) == 2
    for face, wanted in zip(item["faces"], printed["faces"], strict=True):
        assert face.keys() == wanted.keys()
        assert list(face["probabilities"]) == list(wanted["probabilities"]) == list(LABELS)
        assert face["emotion"] == wanted["emotion"]
        for key in ("box", "score", "confidence", "probabilities"):
            # The server may add in another order: its threads are not the test's.
            assert face[key] == pytest.approx(wanted[key], abs=1e-4)


def test_predict_gives_no_face_for_a_picture_without_one(client, photos):
    item = client.predict(handle_file(photos["cup.jpg"]), api_name="/predict")
    assert item == {"image": "cup.jpg", "faces": [], "error": None}


@pytest.mark.parametrize("name", ["text.jpg", "empty.png", "cut.png", "large.png"])
def test_predict_says_in_one_sentence_what_is_wrong_with_a_file(client, predictor, photos, name):
    item = client.predict(handle_file(photos[name]), api_name="/predict")
    assert (item["image"], item["faces"]) == (name, [])
    # The sentence of the command line, with the visitor's name of the file instead of the server's path.
    with pytest.raises(ValueError, match=re.escape(str(photos[name]))) as error:
        predictor.predict(photos[name])
    assert item["error"] == str(error.value).replace(str(photos[name]), name)
    assert "\n" not in item["error"]


def test_predict_reads_nothing_on_the_server_but_uploads(url, photos):
    # Unlike gradio_client, which would upload the file: a path that is already the server's.
    request = {"data": [{"path": str(photos["person.png"])}]}
    started = httpx.post(f"{url}gradio_api/call/predict", json=request, timeout=PATIENCE).json()
    answer = httpx.get(f"{url}gradio_api/call/predict/{started['event_id']}", timeout=PATIENCE).text
    assert answer.startswith("event: error")
    assert "'person.png' was not uploaded" in answer


def test_app_refuses_a_missing_checkpoint_in_one_sentence(folder):
    missing = str(folder / "missing")
    environment = {**os.environ, "EMOTION_CHECKPOINT": missing}
    done = subprocess.run(
        [sys.executable, str(APP)], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and missing in done.stderr


@with_browser
def test_upload_shows_boxes_bars_and_a_sentence(page, requests, url, predictor, photos):
    wanted = predictor.predict(photos["pair.jpg"])
    upload(page, photos["pair.jpg"])
    expect(page.locator("#photo-result .face")).to_have_count(2)

    picture = page.locator("#photo-result .photo img").bounding_box()
    scale = picture["width"] / 1100
    for number, face in enumerate(wanted):
        x, y, width, height = face.box
        box = page.locator("#photo-result .box").nth(number).bounding_box()
        assert box["x"] - picture["x"] == pytest.approx(x * scale, abs=1.5)
        assert box["y"] - picture["y"] == pytest.approx(y * scale, abs=1.5)
        assert (box["width"], box["height"]) == pytest.approx((width * scale, height * scale), abs=1.5)

        card = page.locator("#photo-result .face").nth(number)
        assert card.locator("h2").inner_text().split("\n")[0] == str(number + 1)
        rows = card.locator("li")
        assert [row.split("\n")[0] for row in rows.all_inner_texts()] == list(LABELS)
        for row, probability in zip(rows.all(), face.probabilities.values(), strict=True):
            low, high = shown_percent(row.inner_text().split("\n")[-1])
            assert low <= probability <= high
            track, bar = (row.locator(part).bounding_box()["width"] for part in (".track", ".bar"))
            assert bar == pytest.approx(max(2, probability * track), abs=1)
        assert card.locator("figure img").evaluate("i => [i.naturalWidth, i.naturalHeight]") == [48, 48]

    summary = page.get_by_role("status").filter(has_text="2 faces")
    expect(summary).to_contain_text(f"1 {wanted[0].emotion}")
    expect(summary).to_contain_text(f"2 {wanted[1].emotion}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    hosts = {urlsplit(address).netloc for address in requests if not address.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(url).netloc}


@with_browser
def test_picture_without_a_face_can_be_taken_for_one(page, predictor, photos):
    upload(page, photos["cup.jpg"])
    expect(page.get_by_role("status").filter(has_text="No face")).to_be_visible()
    expect(page.locator("#photo-result .face")).to_have_count(0)
    page.get_by_role("button", name="Treat the whole picture as a face").click()
    expect(page.locator("#photo-result .face")).to_have_count(1)
    expect(page.locator("#photo-summary")).to_contain_text(predictor.predict_whole(photos["cup.jpg"]).emotion)
    expect(page.locator("#photo-whole")).to_be_hidden()


@with_browser
def test_bad_file_replaces_the_last_result_by_a_sentence(page, photos):
    upload(page, photos["person.png"])
    expect(page.locator("#photo-result .face")).to_have_count(1)
    page.locator("#photo-input button[aria-label='Remove Image']").click()
    expect(page.locator("#photo-result .face")).to_have_count(0)
    upload(page, photos["text.jpg"])
    expect(page.locator("#photo-summary")).to_contain_text("'text.jpg' is not a picture")
    expect(page.locator("#photo-result .face")).to_have_count(0)


@with_browser
@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_text_and_bars_stand_out_in_both_themes(page, photos):
    upload(page, photos["person.png"])
    card = page.locator("#photo-result .face")
    colours = card.evaluate(
        """card => [getComputedStyle(card).backgroundColor, getComputedStyle(card.querySelector('li')).color,
           ...[...card.querySelectorAll('.bar')].map(bar => getComputedStyle(bar).backgroundColor)]"""
    )
    ground, text, *bars = [luminance(colour) for colour in colours]
    assert len(set(colours)) == 2 + len(LABELS)
    # WCAG 2.2, 1.4.3 and 1.4.11.
    assert contrast(text, ground) >= 4.5
    assert min(contrast(bar, ground) for bar in bars) >= 3


def luminance(colour: str) -> float:
    """Relative luminance of 'rgb(r, g, b)', as WCAG 2.2 defines it."""
    channels = [int(c) / 255 for c in re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups()]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
