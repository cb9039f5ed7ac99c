"""What is left of a face when a visitor has gone: nothing on disk, in a log or with another machine."""

import os
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import PATIENCE, files_in, serving, wait_until, with_browser
from playwright.sync_api import Browser, expect

import emotion.ui
from emotion.networks import load_networks
from emotion.ui.guard import sweep

CLOCK = (
    "import signal, time, emotion.ui",
    "emotion.ui.SWEEP_SECONDS, now = 1, time.time",
    "signal.signal(signal.SIGUSR1, lambda *_: setattr(time, 'time', lambda: now() + 240))",
    "signal.signal(signal.SIGUSR2, lambda *_: setattr(time, 'time', now))",
)
"""Puts the clock forward, at a signal, by the four minutes that the page states, and back at another one."""


@with_browser
def test_nothing_of_a_face_is_left_by_a_session_and_by_a_killed_server(
    browser: Browser,
    checkpoints: Path,
    photos: dict[str, Path],
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Wherever a program may write: its own folder, the home of its user, and the place of temporary files.
    areas = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for name, folder in areas.items():
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    site = tmp_path / "site"
    site.mkdir()
    with serving(site, {"EMOTION_CHECKPOINT": str(checkpoints)}, *CLOCK) as (url, process):
        before = files_in(*areas.values(), site)
        context = browser.new_context(permissions=["camera"])
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        page.goto(url)

        # Each way of giving a face, and something that shows that it has been looked at.
        page.set_input_files("#photo-input input[type=file]", photos["pair.jpg"])
        expect(page.locator("#photo-result .face")).to_have_count(2)
        assert photos["pair.jpg"].stat().st_size in files_in(site / "uploads").values()
        page.get_by_label("Show where the evidence lies").check()
        expect(page.locator("#photo-result figure img")).to_have_count(4)
        with page.expect_download():
            page.get_by_role("button", name="Download as a picture").click()
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Choose several photos at once").click()
        chooser.value.set_files([photos["person.png"], photos["text.jpg"], photos["cut.png"]])
        expect(page.locator("#batch-result tbody tr")).to_have_count(3)
        page.get_by_role("tab", name="Live").click()
        page.locator("#live-camera").get_by_text("Click to Access Webcam").click()
        page.locator("#live-camera .capture-button").click()
        expect(page.locator("#live-result .face")).to_have_count(1)
        page.get_by_role("tab", name="Video").click()
        page.set_input_files("#video-input input[type=file]", clip)
        expect(page.locator("#video-result svg").first).to_be_visible()
        page.get_by_role("tab", name="Augmentation").click()
        page.set_input_files("#augmentation-input input[type=file]", photos["person.png"])
        expect(page.locator("#augmentation-result img").first).to_be_visible()
        page.get_by_role("tab", name="The model").click()
        expect(page.locator("#about-card h2").first).to_be_visible()

        # A link holds no picture, and an upload that is broken off leaves nothing behind.
        assert len(page.evaluate("location.href")) < 200
        assert httpx.get(f"{url}gradio_api/deep_link", params={"session_hash": "any"}).status_code == 404
        context.close()
        with begun_upload(url, photos["person.png"]):
            wait_until(lambda: any(file.name.startswith("tmp") for file in files_in(site / "uploads")))
        process.send_signal(signal.SIGUSR1)
        uploads = site / "uploads"
        wait_until(lambda: not files_in(uploads) and not [f for f in uploads.iterdir() if len(f.name) == 64])
        left = {name: size for name, size in files_in(*areas.values(), site).items() if before.get(name) != size}
        # The fonts of this machine, for the diagrams of the model's card.
        assert [file.name for file in left if file != site / "app.log" and file.parent.name != "matplotlib"] == []
        assert not (site / "outside").exists(), (site / "outside").read_text()
        log = (site / "app.log").read_text()
        assert "base64" not in log and "Traceback" not in log
        assert not [name for name in (*photos, clip.name) if name in log]

        # Killed with a face and a half on its disk, it leaves them to the next server.
        process.send_signal(signal.SIGUSR2)
        time.sleep(1)
        with begun_upload(url, photos["person.png"]), open(photos["pair.jpg"], "rb") as file:
            httpx.post(f"{url}gradio_api/upload", files={"files": file}, timeout=PATIENCE).raise_for_status()
            wait_until(lambda: len(files_in(site / "uploads")) == 2)
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert len(files_in(site / "uploads")) == 2
    foreign = site / "uploads" / "notes.txt"
    foreign.touch()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(site / "uploads"))
    monkeypatch.setattr(emotion.ui, "SWEEP_SECONDS", 1)
    monkeypatch.setattr(emotion.ui, "KEEP_SECONDS", 1)
    page = emotion.ui.build_page(load_networks(checkpoints / "first"))
    page.launch(prevent_thread_lock=True, quiet=True, **emotion.ui.launch_options())
    wait_until(lambda: files_in(site / "uploads").keys() == {foreign})
    page.close()


def begun_upload(url: str, photo: Path) -> socket.socket:
    """A connection on which half of a photo has been sent."""
    content = photo.read_bytes()
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Length: {2 * len(content)}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        f'--b\r\nContent-Disposition: form-data; name="files"; filename="{photo.name}"\r\n\r\n'
    )
    connection = socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=PATIENCE)
    connection.sendall(head.encode() + content[: len(content) // 2])
    return connection


def test_what_is_old_is_swept_and_what_another_server_has_just_taken_stays(tmp_path: Path) -> None:
    sweep(tmp_path / "missing", 0)
    upload, partial, link = tmp_path / ("0f" * 32) / "me.jpg", tmp_path / "tmpabc12_9z", tmp_path / ("1e" * 32)
    upload.parent.mkdir()
    kept = [tmp_path / "notes.txt", tmp_path / "deeper" / ("0f" * 32), tmp_path / "tmp.jpg"]
    kept[1].parent.mkdir()
    for file in (upload, partial, *kept):
        file.touch()
    link.symlink_to(kept[1].parent)
    sweep(tmp_path, 60)
    assert upload.exists() and partial.exists()
    time.sleep(1.1)
    fresh = tmp_path / ("2d" * 32)
    fresh.mkdir()
    sweep(tmp_path, 1)
    assert not upload.parent.exists() and not partial.exists()
    assert fresh.exists() and all(file.exists() for file in kept)


def test_forgetting_outlives_an_error_and_reaches_whom_others_pushed_out(
    checkpoints, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(emotion.ui, "SWEEP_SECONDS", 1)
    monkeypatch.setattr(emotion.ui, "KEEP_SECONDS", 1)
    page = emotion.ui.build_page(load_networks(checkpoints / "first"))
    options = emotion.ui.launch_options() | {"state_session_capacity": 2}
    assert (tmp_path / "uploads").stat().st_mode & 0o777 == 0o700
    is_dir = Path.is_dir

    def fail(_: int) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(emotion.ui.guard, "TRIM", fail)
    with monkeypatch.context() as patch:
        # As if the folder were deleted between this look and the next.
        (tmp_path / "uploads").rmdir()
        patch.setattr(Path, "is_dir", lambda path: path.name == "uploads" or is_dir(path))
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **options)
        for _ in range(5):
            httpx.post(f"{url}gradio_api/call/predict", json={"data": [None]}, timeout=PATIENCE).raise_for_status()
        wait_until(lambda: "FileNotFoundError in:" in capsys.readouterr().err)
    wait_until(lambda: not page._queue.pending_messages_per_session and not page._queue.pending_event_ids_session)
    page.close()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows keeps such folders per user")
def test_the_default_folder_of_uploads_is_the_users_own(tmp_path, monkeypatch) -> None:
    folder, others = tmp_path / f"emotion48-{os.getuid()}", tmp_path / "others"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    folder.mkdir(0o755)
    emotion.ui.launch_options()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    others.mkdir(0o755)
    folder.symlink_to(others)
    with pytest.raises(OSError, match="is a link, or another user's; set GRADIO_TEMP_DIR to a folder of your own"):
        emotion.ui.launch_options()
    assert others.stat().st_mode & 0o777 == 0o755


def test_what_gradio_remembers_of_a_visitor_is_dropped(checkpoints, photos, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(emotion.ui, "SWEEP_SECONDS", 1)
    monkeypatch.setattr(emotion.ui, "KEEP_SECONDS", 1)
    page = emotion.ui.build_page(load_networks(checkpoints / "first"))
    app, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **emotion.ui.launch_options())
    httpx.post(f"{url}gradio_api/call/predict", json={"data": [None]}, timeout=PATIENCE).raise_for_status()
    # Its answer is never fetched.
    held = app.state_holder.session_data, page._queue.pending_messages_per_session
    wait_until(lambda: all(held))
    wait_until(lambda: not any(held))
    page.close()
