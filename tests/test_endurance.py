"""Two hundred requests of every kind leave the page quick to answer and no larger in memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
from conftest import PATIENCE, serving, with_browser
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser, expect

from emotion.ui.look import data_url

REQUESTS = 200
GROWTH = 1.10


class Visitor:
    """Somebody who has just opened the page: asks what its buttons ask, over the requests that a browser sends.

    Args:
        http: reaches the page's `gradio_api`.
        config: the page's own description.
    """

    def __init__(self, http: httpx.Client, config: dict[str, Any]) -> None:
        self.http, self.config, self.session = http, config, uuid4().hex

    def start(self, elem_id: str, event: str, data: list[Any]) -> str:
        """Cause the event of a component with the values that it takes; one function of the server may listen to it."""
        [component] = [part["id"] for part in self.config["components"] if part["props"].get("elem_id") == elem_id]
        [function] = [
            f["id"] for f in self.config["dependencies"] if [component, event] in f["targets"] and f["backend_fn"]
        ]
        body = {"fn_index": function, "session_hash": self.session, "data": data}
        return self.http.post("queue/join", json=body).raise_for_status().json()["event_id"]

    def answers(self, until: str = "process_completed") -> Any:
        """The answer to what was started, in whose last message `until` stands."""
        with self.http.stream("GET", "queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data: ") or "{}")
                assert message.get("success", True), message
                if message.get("msg") == until:
                    return message["output"]["data"]
        raise AssertionError("the page hung up")

    def ask(self, *event: Any) -> str:
        """What `start` and `answers` give, as text."""
        self.start(*event)
        return json.dumps(self.answers())

    def upload(self, photo: Path) -> dict[str, Any]:
        """Give a photo."""
        [path] = self.http.post("upload", files={"files": (photo.name, photo.read_bytes())}).json()
        return {"path": path, "orig_name": photo.name, "meta": {"_type": "gradio.FileData"}}

    def stream(self, frame: Image.Image) -> str:
        """Show the camera three frames, and stop."""
        given = {"url": data_url(frame, "JPEG")}
        event = self.start("live-camera", "stream", [given, "first", None])
        seen = json.dumps(self.answers("process_streaming"))
        for _ in range(2):
            self.http.post(f"stream/{event}", json={"data": [given, "first", None], "session_hash": self.session})
        self.http.post(f"stream/{event}/close", json={})
        return seen


@with_browser
def test_two_hundred_mixed_requests_leave_the_page_as_it_was(
    checkpoints: Path, photos: dict[str, Path], portrait: Image.Image, tmp_path: Path, browser: Browser
) -> None:
    small = tmp_path / "small.jpg"
    face = portrait.crop((80, 0, 400, 320)).resize((160, 160))
    face.save(small)
    grey = data_url(face.convert("L").resize((48, 48)), "PNG")
    with (
        serving(tmp_path, {"EMOTION_CHECKPOINT": str(checkpoints)}) as (url, server),
        httpx.Client(base_url=f"{url}gradio_api/", timeout=PATIENCE) as http,
    ):
        config, program = httpx.get(f"{url}config", timeout=PATIENCE).json(), Client(url, verbose=False)

        def visit() -> int:
            """Ask for everything once; returns the number of requests."""
            visitor = Visitor(http, config)
            photo, bad = visitor.upload(small), visitor.upload(photos["text.jpg"])
            requests: list[tuple[Callable[[], Any], str]] = [
                (lambda: program.predict(handle_file(small), api_name="/predict"), "happy"),
                (lambda: program.predict(handle_file(small), seed=3, api_name="/augment"), "GrayscaleNoise"),
                (lambda: program.predict(handle_file(photos["text.jpg"]), api_name="/predict"), "is not a picture"),
                (
                    lambda: visitor.ask("photo-input", "change", ["first", photo, False, None, None]),
                    "One face was found",
                ),
                (
                    lambda: visitor.ask("photo-evidence", "input", ["first", photo, True, None, None]),
                    "map of the evidence",
                ),
                (
                    lambda: visitor.ask("photo-evidence", "input", ["second", photo, False, None, None]),
                    "no class is clear",
                ),
                (lambda: visitor.ask("photo-whole", "click", ["first", photo, False]), "taken for one face"),
                (lambda: visitor.ask("photo-save", "click", ["first", photo, None]), "data:image/png"),
                (lambda: visitor.ask("photo-input", "change", ["first", bad, False, None, None]), "is not a picture"),
                (lambda: visitor.ask("batch-input", "upload", ["first", [photo, bad]]), "2 photos, 2 rows"),
                (lambda: visitor.ask("photo-example", "change", ["sad"]), "sad.png"),
                (lambda: visitor.ask("augmentation-input", "change", [photo]), "One face was found"),
                (lambda: visitor.ask("augmentation-seed", "change", [grey, 1, 0.5, []]), "Step by step"),
                (lambda: visitor.stream(face), "One face"),
            ]
            for request, wanted in requests:
                assert wanted in str(request())
            return len(requests)

        visit()
        process = psutil.Process(server.pid)
        before, asked = process.memory_info().rss, 0
        while asked < REQUESTS:
            asked += visit()
        after = process.memory_info().rss
        assert after < GROWTH * before, f"{before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after {asked} requests"

        page = browser.new_page()
        page.goto(url)
        page.set_input_files("#photo-input input[type=file]", small)
        expect(page.locator("#photo-summary")).to_contain_text("One face was found")
        page.close()
