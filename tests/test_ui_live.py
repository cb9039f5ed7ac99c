"""The Live tab: a stream over HTTP, and in Chromium with a camera that sees a portrait, none, or a blocked one."""

import base64
import io
import json
import re
import threading
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import numpy as np
import pytest
from conftest import CHROMIUM, FLAGS, PATIENCE, files_in, serious_violations, with_browser
from gradio.data_classes import ImageData
from gradio.exceptions import Error
from PIL import Image, ImageOps
from playwright.sync_api import Locator, Page, expect

import emotion.ui
from emotion.follow import Sample
from emotion.networks import load_networks
from emotion.ui.inputs import camera_input
from emotion.ui.look import COLOURS, boxes, data_url, timeline

BUTTON = "#live-camera .capture-button"
FRAMES = 20


def problem(page: Page) -> Locator:
    return page.locator("#live-help [role=alert]")


def start(page: Page, url: str) -> None:
    page.goto(f"{url}?tab=live")
    page.locator("#live-camera").get_by_text("Click to Access Webcam").click()
    page.locator(BUTTON).click()


def camera_is(page: Page, state: str) -> None:
    page.wait_for_function(
        "state => document.querySelector('#live-camera video').srcObject.getTracks()[0].readyState === state",
        arg=state,
    )


def test_frames_that_come_while_the_server_is_busy_are_dropped_and_none_is_written(url, site, portrait, page_predictor):
    before = files_in(site / "uploads").keys()
    person = portrait.resize((240, 240))
    frames = []
    for left in (0, 400):
        frame = Image.new("RGB", (640, 480), (90, 110, 90))
        frame.paste(person, (left, 100))
        frames.append(frame)
    [face] = page_predictor.predict(frames[1])
    # To the percent: the server may add in another order.
    wanted = re.search(r"left:\d+", boxes({1: face}, frames[1].size))[0] + "."
    [stream] = [
        function["id"]
        for function in httpx.get(f"{url}config", timeout=PATIENCE).json()["dependencies"]
        if any(event == "stream" for _, event in function["targets"])
    ]
    session = uuid4().hex
    body = {"fn_index": stream, "session_hash": session, "data": None, "event_data": None, "trigger_id": None}

    older, newest = (body | {"data": [{"url": data_url(frame, "JPEG")}, "first", None]} for frame in frames)
    with httpx.Client(base_url=f"{url}gradio_api/", timeout=PATIENCE) as client:
        event = client.post("queue/join", json=older).json()["event_id"]

        def send() -> None:
            for frame in [older] * (FRAMES - 1) + [newest]:
                client.post(f"stream/{event}", json=frame)

        answers, sender = [], threading.Thread(target=send)
        with client.stream("GET", "queue/data", params={"session_hash": session}) as messages:
            for line in messages.iter_lines():
                message = json.loads(line.removeprefix("data: ") or "{}")
                assert message.get("success", True), message
                if message.get("msg") != "process_streaming":
                    continue
                answers.append(message["output"]["data"][1])
                if len(answers) == 1:
                    sender.start()
                elif wanted in answers[-1]:
                    break
        sender.join()
        client.post(f"stream/{event}/close", json={})
    # The newest frame has been answered; a queue would have answered all the older ones before it.
    assert len(answers) < FRAMES
    assert wanted not in answers[0]
    assert files_in(site / "uploads").keys() <= before


def test_the_stream_reads_pictures_that_are_sent_and_no_file_of_the_server(photos):
    camera = camera_input("camera")
    assert camera.preprocess(None) is None
    assert camera.preprocess(ImageData(path=str(photos["person.png"]))) is None
    frames = (
        f"file://{photos['person.png']}",
        *("data:image/jpeg;base64," + end for end in ("bm90aGluZw==", "x", "ü")),
    )
    for url in frames:
        with pytest.raises(Error, match="is not a picture; give an intact"):
            camera.preprocess(ImageData(url=url))
    photo = Image.open(photos["person.png"])
    assert np.array_equal(camera.preprocess(ImageData(url=data_url(photo, "PNG"))), photo)


def test_timeline_draws_each_probability_in_its_colour_and_says_the_averages():
    samples = [
        Sample(100.0, 1, {"happy": 1.0, "<b>": 0.0}),
        Sample(101.0, 1, {"happy": 0.5, "<b>": 0.5}),
        Sample(110.0, 1, {"happy": 0.5, "<b>": 0.5}),  # after nine seconds without a face
        Sample(111.0, 2, {"happy": 0.0, "<b>": 1.0}),  # another face
    ]
    html = timeline(samples, ["happy", "<b>"])
    # 300 units are 30 seconds, and the newest sample is at the right edge; 100 units are certainty, downwards.
    assert "M190.0 0.0h.1L200.0 50.0M290.0 50.0h.1M300.0 100.0h.1" in html
    assert html.count("<path") == 2 and f'stroke="{COLOURS["happy"]}"' in html
    assert html.count("In the last 11 seconds: on average happy 50%, &lt;b&gt; 50%") == 2
    assert "<b>" not in html
    assert "No face" in timeline([], ["happy"])


@with_browser
def test_boxes_bars_timeline_and_rate_appear_and_the_camera_stops(page, url, page_predictor):
    start(page, url)
    result = page.locator("#live-result")
    expect(result.locator(".face li")).to_have_count(7)
    expect(page.locator("#live-summary")).to_contain_text("One face")
    expect(result.locator(".rate")).to_have_text(re.compile(r"^[0-9]*[1-9.][0-9.]* frames per second$"))
    expect(result.locator("svg[role=img]")).to_have_attribute("aria-label", re.compile(r"^In the last \d+ seconds: on"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not serious_violations(page)

    # What the person sees is the camera's picture mirrored; the box is on the face in that.
    video = page.locator("#live-camera video")
    assert video.evaluate("video => new DOMMatrix(getComputedStyle(video).transform).a") == -1
    content = video.evaluate(
        """video => {
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
            canvas.getContext("2d").drawImage(video, 0, 0);
            return canvas.toDataURL("image/png");
        }"""
    )
    seen = ImageOps.mirror(Image.open(io.BytesIO(base64.b64decode(content.partition(",")[2]))).convert("RGB"))
    [face] = page_predictor.predict(seen)
    camera, box = video.bounding_box(), page.locator("#live-boxes .box").bounding_box()
    scale = camera["width"] / seen.width
    assert camera["height"] == pytest.approx(seen.height * scale, abs=1)
    x, y, width, height = (scale * value for value in face.box)
    assert (box["x"] - camera["x"], box["y"] - camera["y"]) == pytest.approx((x, y), abs=4)
    assert (box["width"], box["height"]) == pytest.approx((width, height), abs=4)

    page.get_by_role("radio", name="second").check()
    expect(result.locator("h2")).to_contain_text("No class is clear")

    page.locator(BUTTON).click()
    camera_is(page, "ended")
    expect(result.locator(".rate")).to_be_hidden()
    expect(result.locator("svg")).to_be_visible()
    page.locator(BUTTON).click()
    camera_is(page, "live")
    # Leaving the tab stops it, too.
    page.get_by_role("tab", name="Photo").click()
    camera_is(page, "ended")
    page.wait_for_timeout(500)
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    page.wait_for_timeout(1000)
    assert not [address for address in sent if "/stream/" in address]


@with_browser
def test_cameras_take_turns(checkpoints, tmp_path, monkeypatch, browser):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(emotion.ui.live, "VIEWERS", 1)
    monkeypatch.setattr(emotion.ui.live, "TURN_SECONDS", 1)
    served = emotion.ui.build_page(load_networks(checkpoints / "first"))
    served.launch(prevent_thread_lock=True, quiet=True, **emotion.ui.launch_options())
    context = browser.new_context(permissions=["camera"])
    context.set_default_timeout(1000 * PATIENCE)
    pages = [context.new_page() for _ in range(2)]
    for page in pages:
        start(page, served.local_url)
    # Both get more than one turn.
    for page in pages * 2:
        words = page.locator("#live-result figcaption")
        expect(words).to_contain_text("In the last")
        expect(words).not_to_have_text(words.inner_text())
    context.close()
    served.close()
    assert not files_in(tmp_path)


@with_browser
def test_a_camera_whose_page_is_closed_makes_way_at_once(checkpoints, tmp_path, monkeypatch, browser):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(emotion.ui.live, "VIEWERS", 1)
    monkeypatch.setattr(emotion.ui.live, "TURN_SECONDS", 2 * PATIENCE)
    served = emotion.ui.build_page(load_networks(checkpoints / "first"))
    served.launch(prevent_thread_lock=True, quiet=True, **emotion.ui.launch_options())
    context = browser.new_context(permissions=["camera"])
    context.set_default_timeout(1000 * PATIENCE)
    first, second = (context.new_page() for _ in range(2))
    start(first, served.local_url)
    expect(first.locator("#live-result figcaption")).to_contain_text("In the last")
    start(second, served.local_url)
    second.wait_for_timeout(1000)
    expect(second.locator("#live-result figcaption")).to_have_count(0)
    first.close()
    expect(second.locator("#live-result figcaption")).to_contain_text("In the last")
    context.close()
    served.close()


@with_browser
def test_without_a_camera_the_page_says_what_to_do(url, browser):
    def opened(address: str, *flags: str) -> Page:
        own = [flag for flag in FLAGS if "media-stream" not in flag]
        page = browser.browser_type.launch(executable_path=CHROMIUM, args=[*own, *flags]).new_page()
        page.goto(address)
        return page

    help = problem(opened(f"{url}?tab=live", "--use-fake-ui-for-media-stream"))
    expect(help).to_have_text(re.compile("No camera was found"))
    help.page.context.browser.close()

    elsewhere = f"http://page.test:{urlsplit(url).port}/?tab=live"
    device = "--use-fake-device-for-media-stream"
    deny = "--use-fake-ui-for-media-stream=deny"
    help = problem(opened(elsewhere, device, deny, "--host-resolver-rules=MAP page.test 127.0.0.1"))
    expect(help).to_have_text(re.compile("only to pages with an https address"))
    help.page.goto(f"{url}?tab=live")
    expect(help).to_be_hidden()
    help.page.locator("#live-camera").get_by_text("Click to Access Webcam").click()
    expect(help).to_have_text(re.compile("The camera is blocked for this page"))
    help.page.context.browser.close()
