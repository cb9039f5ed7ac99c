"""The page as its visitors and clients meet it: app.py in its own process, gradio_client and Chromium in front."""

import json
import os
import platform
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import PAGE_LABELS, PATIENCE, serving, with_browser
from gradio_client import Client, handle_file
from playwright.sync_api import Page, expect

from emotion.__main__ import main

APP = Path(__file__).resolve().parents[1] / "app.py"


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False)


def upload(page: Page, photo: Path) -> None:
    page.set_input_files("#photo-input input[type=file]", photo)


def shown_percent(text: str) -> tuple[float, float]:
    """Bounds of the probability that a percentage on the page stands for."""
    number = int(re.search(r"\d+", text)[0]) / 100
    return (0, 0.01) if "<" in text else (0.99, 1) if ">" in text else (number - 0.0051, number + 0.0051)


def test_only_documented_endpoints_are_public_and_predict_needs_one_picture(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(endpoints) == ["/predict", "/video", "/augment"]
    assert [p["parameter_name"] for p in endpoints["/predict"]["parameters"]] == ["image"]


def test_predict_answers_what_the_command_line_prints(client, checkpoints, photos, capsys):
    photo = photos["pair.jpg"]
    assert main(["predict", "--json", "--checkpoint", str(checkpoints / "first"), str(photo)]) == 0
    [printed] = json.loads(capsys.readouterr().out)
    item = client.predict(handle_file(photo), api_name="/predict")
    assert item.keys() == printed.keys()
    assert (item["image"], item["error"]) == ("pair.jpg", None)
    assert len(item["faces"]) == len(printed["faces"]) == 2
    for face, wanted in zip(item["faces"], printed["faces"], strict=True):
        assert face.keys() == wanted.keys()
        assert list(face["probabilities"]) == list(wanted["probabilities"]) == list(PAGE_LABELS)
        assert face["emotion"] == wanted["emotion"]
        for key in ("box", "score", "confidence", "probabilities"):
            # The server may add in another order: its threads are not the test's.
            assert face[key] == pytest.approx(wanted[key], abs=1e-4)


def test_predict_gives_no_face_for_a_picture_without_one(client, photos):
    item = client.predict(handle_file(photos["cup.jpg"]), api_name="/predict")
    assert item == {"image": "cup.jpg", "faces": [], "error": None}


@pytest.mark.parametrize("name", ["text.jpg", "empty.png", "cut.png", "large.png"])
def test_predict_says_in_one_sentence_what_is_wrong_with_a_file(client, page_predictor, photos, name):
    item = client.predict(handle_file(photos[name]), api_name="/predict")
    assert (item["image"], item["faces"]) == (name, [])
    # The sentence of the command line, with the visitor's name of the file instead of the server's path.
    with pytest.raises(ValueError, match=re.escape(str(photos[name]))) as error:
        page_predictor.predict(photos[name])
    assert item["error"] == str(error.value).replace(str(photos[name]), name)
    assert "\n" not in item["error"]


def test_predict_reads_nothing_on_the_server_but_uploads(url, photos):
    # Unlike gradio_client, which would upload the file: a path that is already the server's.
    request = {"data": [{"path": str(photos["person.png"])}]}
    started = httpx.post(f"{url}gradio_api/call/predict", json=request, timeout=PATIENCE).json()
    answer = httpx.get(f"{url}gradio_api/call/predict/{started['event_id']}", timeout=PATIENCE).text
    assert answer.startswith("event: error")
    assert "'person.png' was not uploaded" in answer


def test_app_refuses_a_missing_checkpoint_in_one_sentence(tmp_path):
    missing = str(tmp_path / "missing")
    environment = {**os.environ, "EMOTION_CHECKPOINT": missing}
    code = "import sys, app; print(app.main([]), 'gradio' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=APP.parent, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    # Without the seconds that gradio takes.
    assert done.stdout == "2 False\n"
    assert len(done.stderr.splitlines()) == 1 and missing in done.stderr


def test_page_registers_with_zero_gpu_and_answers_without_asking_for_a_gpu(checkpoints, photos, tmp_path):
    asked = []

    class Scheduler(BaseHTTPRequestHandler):
        """Stands in for what lends GPUs; it is told that the page has a function that may ask for one."""

        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Be silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Scheduler) as scheduler:
        threading.Thread(target=scheduler.serve_forever, daemon=True).start()
        variables = {
            "SPACES_ZERO_GPU": "true",
            "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{scheduler.server_port}",
            "EMOTION_CHECKPOINT": str(checkpoints / "first"),
        }
        with serving(tmp_path, variables) as (address, _):
            assert asked == ["/startup-report"]
            item = Client(address, verbose=False).predict(handle_file(photos["pair.jpg"]), api_name="/predict")
            assert len(item["faces"]) == 2
            assert asked == ["/startup-report"]
        scheduler.shutdown()


@with_browser
def test_upload_shows_boxes_bars_and_a_sentence(page, requests, url, page_predictor, photos):
    wanted = page_predictor.predict(photos["pair.jpg"])
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
        assert [row.split("\n")[0] for row in rows.all_inner_texts()] == list(PAGE_LABELS)
        for row, probability in zip(rows.all(), face.probabilities.values(), strict=True):
            low, high = shown_percent(row.inner_text().split("\n")[-1])
            assert low <= probability <= high
            track, bar = (row.locator(part).bounding_box()["width"] for part in (".track", ".bar"))
            assert bar == pytest.approx(max(2, probability * track), abs=1)
        assert card.locator("figure img").evaluate("i => [i.naturalWidth, i.naturalHeight]") == [48, 48]

    summary = page.get_by_role("status").filter(has_text="2 faces")
    expect(summary).to_contain_text(f"Face 1: most likely {wanted[0].emotion}")
    expect(summary).to_contain_text(f"Face 2: most likely {wanted[1].emotion}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    hosts = {urlsplit(address).netloc for address in requests if not address.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(url).netloc}


@with_browser
def test_picture_without_a_face_can_be_taken_for_one(page, page_predictor, photos):
    upload(page, photos["cup.jpg"])
    expect(page.get_by_role("status").filter(has_text="No face")).to_be_visible()
    expect(page.locator("#photo-result .face")).to_have_count(0)
    page.get_by_role("button", name="Treat the whole picture as a face").click()
    expect(page.locator("#photo-result .face")).to_have_count(1)
    expect(page.locator("#photo-summary")).to_contain_text(page_predictor.predict_whole(photos["cup.jpg"]).emotion)
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
    assert len(set(colours)) == 2 + len(PAGE_LABELS)
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


HEAPS = """
import ctypes, sys, threading
import app

app._share_heaps()
meet = threading.Barrier(13)

def fill() -> None:
    kept = [bytes(1000) for _ in range(1000)]
    meet.wait()
    meet.wait()

threads = [threading.Thread(target=fill) for _ in range(12)]
for thread in threads:
    thread.start()
meet.wait()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
meet.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives each thread a heap")
@pytest.mark.parametrize(("environment", "heaps"), [({}, 2), ({"MALLOC_ARENA_MAX": "5"}, 5)])
def test_threads_share_two_heaps_or_as_many_as_the_environment_says(
    environment: dict[str, str], heaps: int, tmp_path: Path
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "MALLOC_ARENA_MAX"} | environment
    command = [sys.executable, "-c", HEAPS, str(tmp_path / "heaps.xml")]
    subprocess.run(command, cwd=APP.parent, env=environment, check=True)
    assert (tmp_path / "heaps.xml").read_text().count("<heap nr=") == heaps
