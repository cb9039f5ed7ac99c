"""The Video tab: key moments by hand-made probabilities, the endpoint, and the tab as visitors drive it in Chromium."""

import csv
import io
import math
import os
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import gradio as gr
import httpx
import numpy as np
import pytest
from conftest import PAGE_LABELS, PATIENCE, files_in, with_browser, write_clip
from gradio.data_classes import FileData
from gradio.exceptions import Error
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Page, expect

import emotion.ui
from emotion.follow import Sample
from emotion.networks import load_networks
from emotion.predict import Prediction
from emotion.ui.inputs import CLIPS, EXAMPLES, clip_input, draw_clip
from emotion.ui.look import timeline
from emotion.ui.video import MOMENTS, Moment, key_moments, smooth
from emotion.video import Clip


def moments(*happy: float) -> list[Moment]:
    """A face that is happy with these probabilities, five times a second, and otherwise sad."""
    track = []
    for index, p in enumerate(happy):
        crop = np.full((48, 48), index, np.uint8)
        best = "happy" if p >= 0.5 else "sad"
        track.append(
            Moment(index / 5, Prediction((0, 0, 9, 9), 0.9, best, max(p, 1 - p), {"happy": p, "sad": 1 - p}, crop))
        )
    return track


def give(page: Page, path: Path) -> None:
    page.set_input_files("#video-input input[type=file]", path)


def clear(page: Page) -> None:
    page.locator("#video-input button[aria-label='Clear']").click()
    expect(page.locator("#video-summary")).to_contain_text("appears here")


@pytest.fixture
def opened(page: Page, url: str) -> Page:
    page.goto(f"{url}?tab=video")
    page.locator("#video-input input[type=file]").wait_for(state="attached")
    return page


def test_smoothing_is_gaussian_and_delays_nothing():
    track = moments(0, 0, 0, 0, 1, 0, 0, 0, 0)
    smoothed = smooth(track)
    weights = [math.exp(-((step / 5) ** 2) / (2 * 0.25**2)) for step in range(9)]
    seen = [moment.face.probabilities["happy"] for moment in smoothed]
    assert seen[4] == pytest.approx(1 / (weights[0] + 2 * sum(weights[1:5])))
    assert seen == pytest.approx(seen[::-1]) and max(seen) == seen[4]
    assert [moment.time for moment in smoothed] == [moment.time for moment in track]
    for moment, before in zip(smoothed, track, strict=True):
        assert sum(moment.face.probabilities.values()) == pytest.approx(1)
        assert moment.face.confidence == max(moment.face.probabilities.values())
        assert moment.face.probabilities[moment.face.emotion] == moment.face.confidence
        assert moment.face.crop is before.face.crop
    # One odd picture does not change the answer, and what stays the same stays the same.
    assert {moment.face.emotion for moment in smoothed} == {"sad"}
    assert [m.face.probabilities["happy"] for m in smooth(moments(0.3, 0.3, 0.3))] == pytest.approx([0.3] * 3)


def test_key_moments_are_the_strongest_of_each_clear_expression():
    def found(track: list[Moment], threshold: float) -> list[tuple[float, str]]:
        return [(moment.time, moment.face.emotion) for moment in key_moments(track, threshold)]

    track = moments(0.8, 0.9, 0.85, 0.3, 0.1, 0.2, 0.7, 0.6)
    assert found(track, 0.6) == [(0.2, "happy"), (0.8, "sad"), (1.2, "happy")]
    # What is not clear ends no stretch: 0.7 and 0.6 are clear no longer, nor is 0.3.
    assert found(track, 0.8) == [(0.2, "happy"), (0.8, "sad")]
    assert found(moments(0.9, 0.55, 0.45, 0.95), 0.8) == [(0.6, "happy")]
    assert found(moments(0.55, 0.4, 0.52), 0.8) == [(0.2, "sad")], "the least unclear"
    assert key_moments(track, 0.8)[0].face.crop[0, 0] == 1
    many = moments(*[0.9, 0.1] * MOMENTS, 0.99)
    assert len(found(many, 0.5)) == MOMENTS
    assert found(many, 0.5)[-1] == (many[-1].time, "happy")


def test_timeline_of_a_clip_begins_at_its_beginning():
    samples = [Sample(time, 1, {"happy": p, "sad": 0.0}) for time, p in ((1.0, 1.0), (2.0, 0.5), (4.5, 0.5))]
    html = timeline(samples, ["happy", "sad"], 5.0)
    # 300 units are the whole clip; after 2.5 seconds without the face, its line begins anew.
    assert "M60.0 0.0h.1L120.0 50.0M270.0 50.0h.1" in html
    assert html.count("From 1.0 to 4.5 seconds: on average happy 67%, sad &lt;1%") == 2
    assert "<span>0 s</span><span>5.0 s</span>" in html
    assert "M0.0 0.0h.1" in timeline([Sample(0.0, 1, {"happy": 1.0, "sad": 0.0})], ["happy", "sad"], 0.0)


@pytest.mark.parametrize("rows", CLIPS.values(), ids=CLIPS)
def test_example_clips_pass_from_one_example_face_to_the_next(tmp_path, rows):
    path = tmp_path / "clip.mp4"
    path.write_bytes(draw_clip(rows))
    assert path.stat().st_size < 200_000
    reader = cv2.VideoCapture(str(path))
    frames = [frame for seen, frame in iter(reader.read, (False, None)) if seen]
    assert reader.get(cv2.CAP_PROP_FPS) == 10
    for column, row in enumerate(rows):
        for index, name in enumerate(row):
            # Each face is shown for a second, and the next comes within 0.6.
            for frame in (frames[16 * index], frames[16 * index + 9]):
                face = frame[40:200, 240 * column + 40 : 240 * column + 200, 1]
                meant = np.asarray(Image.open(EXAMPLES[name]).convert("L").resize((160, 160), Image.BICUBIC))
                assert np.abs(face.astype(int) - meant).mean() < 4
    assert len(frames) == 16 * (len(rows[0]) - 1) + 10


def test_the_input_takes_no_file_of_the_server_and_starts_no_program(clip, tmp_path, monkeypatch):
    started = tmp_path / "started"
    for name in ("ffmpeg", "ffprobe"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ntouch {started}\necho {{}}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    upload = tmp_path / "uploads" / "clip.mp4"
    upload.parent.mkdir()
    upload.write_bytes(clip.read_bytes())
    # As gradio would treat it, a program is started.
    assert gr.Video().postprocess(str(upload)) and started.exists()
    started.unlink()
    with gr.Blocks():
        given = clip_input("clip", gr.Radio(list(CLIPS)))
    for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
        with pytest.raises(Error, match="'clip.mp4' was not uploaded"):
            given.preprocess(FileData(path=str(clip), **meta))
    assert given.preprocess(FileData(path=str(upload))) == str(upload)
    assert given.postprocess(str(upload)).path == str(upload)
    assert given.preprocess(None) is None and given.postprocess(None) == gr.skip()
    assert not started.exists()


def test_video_endpoint_gives_what_predict_gives_for_each_picture(url, clip, page_predictor):
    client = Client(url, verbose=False)
    [parameter] = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/video"]["parameters"]
    assert parameter["parameter_name"] == "video"
    item = client.predict(handle_file(clip), api_name="/video")
    assert (item["video"], item["error"]) == ("clip.mp4", None)
    wanted = [(time, face) for time, picture in Clip(clip) for face in page_predictor.predict(picture)]
    assert len(wanted) == len(item["faces"]) == 8
    for row, (when, face) in zip(item["faces"], wanted, strict=True):
        assert list(row) == ["time", "face", "box", "score", "emotion", "confidence", "probabilities"]
        assert (row["time"], row["face"], row["emotion"]) == (when, 1, face.emotion)
        for key in ("box", "score", "confidence", "probabilities"):
            # The server may add in another order: its threads are not the test's.
            assert row[key] == pytest.approx(getattr(face, key), abs=1e-3)


def test_two_who_come_one_after_the_other_are_two_faces(url, portrait, scenery, tmp_path):
    left, right = (Image.new("RGB", (640, 320), (90, 110, 90)) for _ in range(2))
    left.paste(portrait.resize((280, 280)), (10, 20))
    right.paste(portrait.resize((240, 240)), (380, 60))
    empty = scenery.resize((640, 320))
    # Nobody is there for a second and a half.
    pictures = [left] * 8 + [empty] * 15 + [right] * 8
    clip = write_clip(tmp_path / "two.mp4", pictures, [n / 10 for n in range(len(pictures))])
    faces = Client(url, verbose=False).predict(handle_file(clip), api_name="/video")["faces"]
    sides = {number: {face["box"][0] > 320 for face in faces if face["face"] == number} for number in (1, 2)}
    assert sides == {1: {False}, 2: {True}}
    assert {face["face"] for face in faces} == {1, 2}


def test_video_endpoint_says_in_one_sentence_what_is_wrong(url, clip, tmp_path):
    client = Client(url, verbose=False)
    text = tmp_path / "text.mp4"
    text.write_text("This is no clip.")
    item = client.predict(handle_file(text), api_name="/video")
    assert item == {
        "video": "text.mp4",
        "faces": [],
        "error": "'text.mp4' is not a clip; give an intact MP4, MOV, WebM or MKV.",
    }


def test_video_endpoint_reads_nothing_on_the_server_but_uploads(url, clip):
    for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
        request = {"data": [{"path": str(clip), **meta}]}
        started = httpx.post(f"{url}gradio_api/call/video", json=request, timeout=PATIENCE).json()
        answer = httpx.get(f"{url}gradio_api/call/video/{started['event_id']}", timeout=PATIENCE).text
        assert answer.startswith("event: error")


@with_browser
def test_progress_is_shown_while_a_clip_is_looked_at(opened, portrait, tmp_path):
    page = opened
    # A test that looks now and then might come too late.
    page.evaluate(
        """() => {
            window.said = [];
            const bar = () => document.querySelector("#video-result [role=progressbar]");
            const note = () => bar() && window.said.push(bar().getAttribute("aria-valuetext"));
            new MutationObserver(note).observe(document.body, { subtree: true, childList: true, attributes: true });
        }"""
    )
    give(page, write_clip(tmp_path / "long.mp4", [portrait.resize((320, 320))] * 41, [n / 5 for n in range(41)]))
    expect(page.locator("#video-result .followed")).to_have_count(1)
    assert re.search(r"Looking at your clip: \d+ / 41 pictures", str(page.evaluate("window.said")))


@with_browser
def test_a_clip_becomes_a_timeline_key_moments_and_a_csv(opened, requests, url, clip, page_predictor, tmp_path):
    page = opened
    give(page, clip)
    face = page.locator("#video-result .followed")
    expect(face).to_have_count(1)
    expect(page.locator("#video-summary")).to_contain_text("In this clip of 1.5 seconds, one face was found: ")
    expect(face.locator("svg[role=img]")).to_have_attribute("aria-label", re.compile("^From 0.0 to 1.4 seconds: on"))
    assert face.locator("path").count() == len(PAGE_LABELS)
    picture = face.locator(".moments img").first
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [48, 48]
    expect(picture).to_have_attribute("alt", re.compile(r"^Face 1 after \d\.\d seconds, as the network saw it$"))
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as CSV").click()
    assert download.value.suggested_filename == "clip.csv"
    records = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_bytes().decode(), newline="")))
    wanted = [(time, face) for time, picture in Clip(clip) for face in page_predictor.predict(picture)]
    names = ("time", "face", "x", "y", "width", "height", "score", *PAGE_LABELS)
    for record, (when, answer) in zip(records, wanted, strict=True):
        assert list(record) == [*names[:7], "emotion", *PAGE_LABELS]
        values = [when, 1, *answer.box, answer.score, *answer.probabilities.values()]
        assert [float(record[name]) for name in names] == pytest.approx(values, abs=1e-3)
        assert record["emotion"] == answer.emotion
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

    page.get_by_role("radio", name="second").check()
    expect(page.locator("#video-summary")).to_contain_text("no class is clear, ")
    clear(page)
    expect(face).to_have_count(0)

    text = tmp_path / "text.mp4"
    text.write_text("This is no clip.")
    give(page, text)
    expect(page.locator("#video-summary .error")).to_have_text(re.compile("^'text.mp4' is not a clip; give an intact"))
    # That the browser cannot show it is no second error.
    assert page.locator("[data-testid=toast-body]").count() == 0
    clear(page)
    with open(tmp_path / "large.mp4", "wb") as file:
        file.truncate(65 * 2**20)
    give(page, tmp_path / "large.mp4")
    expect(page.locator("[data-testid=toast-body]")).to_contain_text("exceed the maximum allowed size of 64")
    assert not [address for address in requests if "/static/ffmpeg/" in address]
    assert {urlsplit(sent).netloc for sent in requests if sent.startswith("http")} == {urlsplit(url).netloc}


@with_browser
def test_a_link_opens_an_example_which_an_upload_replaces(page, url, scenery, tmp_path):
    page.goto(f"{url}?tab=video&example=two faces&network=first")
    tracks = page.locator("#video-result .followed")
    expect(tracks).to_have_count(2)
    expect(page.locator("#video-summary")).to_contain_text("2 faces were found. Face 1: ")
    expect(page.get_by_role("radio", name="two faces")).to_be_checked()
    clear(page)
    expect(page.get_by_role("radio", name="two faces")).not_to_be_checked()
    cup = write_clip(tmp_path / "cup.mp4", [scenery] * 3, [0, 0.1, 0.3])
    give(page, cup)
    expect(page.locator("#video-summary")).to_have_text("In this clip of 0.3 seconds, no face was found.")


@with_browser
def test_a_recording_of_the_camera_is_answered(opened):
    page = opened
    page.locator("#video-input button[aria-label='Capture from camera']").click()
    page.locator("#video-input").get_by_text("Click to Access Webcam").click()
    record = page.locator("#video-input .capture-button")
    record.click()
    page.wait_for_timeout(1500)
    record.click()
    expect(page.locator("#video-result .followed")).to_have_count(1)
    expect(page.locator("#video-summary")).to_contain_text("one face was found")


@with_browser
def test_the_file_of_an_example_is_deleted_like_an_upload(checkpoints, tmp_path, monkeypatch, browser):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(emotion.ui, "SWEEP_SECONDS", 1)
    monkeypatch.setattr(emotion.ui, "KEEP_SECONDS", 1)
    served = emotion.ui.build_page(load_networks(checkpoints / "first"))
    served.launch(prevent_thread_lock=True, quiet=True, **emotion.ui.launch_options())
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(f"{served.local_url}?tab=video&example=two faces")

    def wait_for(some: bool) -> None:
        deadline = time.monotonic() + PATIENCE
        while bool(files_in(tmp_path)) != some:
            assert time.monotonic() < deadline
            page.wait_for_timeout(100)

    wait_for(True)
    wait_for(False)
    # No work goes on when this process ends, whether the file was read in time or not.
    expect(page.locator("#video-summary")).not_to_contain_text("appears here")
    page.close()
    served.close()
