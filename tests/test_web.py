"""The web side: no address, payload or name reaches what is not offered, and the server asks no other host."""

import asyncio
import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import pytest
from conftest import PATIENCE, ROOT, files_in, with_browser
from gradio_client import Client
from playwright.sync_api import Page, expect

import emotion.ui
from emotion.networks import load_networks
from emotion.ui.guard import FILE_MEGABYTES, PER_MINUTE, QUEUE, UPLOADS, Guard, setting

SECRET = "a sentence that no visitor may read"


@pytest.fixture(scope="module")
def secret(site: Path, url: str) -> Path:
    """A file in the folder that the page runs in, reached by a link among the uploads, too."""
    file = site / "secret.txt"
    file.write_text(SECRET)
    folder = site / "uploads" / (64 * "a")
    folder.mkdir(parents=True)
    (folder / "link.png").symlink_to(file)
    return file


def get(url: str, path: str) -> tuple[int, bytes]:
    """Status and body of an address that is sent as it is, dots and all."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.mark.parametrize("door", ["gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "svelte/"])
def test_no_address_gives_a_file_of_the_server(url, site, secret, checkpoints, door):
    uploads = site / "uploads"
    targets = [
        *(secret.name, f"./{secret.name}", str(secret), f"/{secret}", f"file://{secret}"),
        *(f"{uploads}/../{secret.name}", f"..{secret}", f"{'../' * 12}{secret}", f"{'%2e%2e/' * 12}{secret}"),
        *(f"{'..%2f' * 12}{secret}", f"{'%252e%252e/' * 12}{secret}", f"{'....//' * 12}{secret}", f"..\\..\\{secret}"),
        *(f"{secret}%00.png", f"{uploads}/{'a' * 64}/link.png", "%2fetc/passwd", "/etc/passwd", "/proc/self/environ"),
        *(str(checkpoints / "first/config.json"), "checkpoints/first/config.json", str(Path(emotion.__file__))),
        *(f"{uploads}", f"{uploads}/"),
    ]
    for target in targets:
        status, body = get(url, f"/{door}{target}")
        assert status in (400, 403, 404, 405), (target, body[:200])
        assert SECRET.encode() not in body and b"root:" not in body


def asked(url: str, image: object) -> str:
    """The event stream in which /predict answers what a client gives as a picture."""
    started = httpx.post(f"{url}gradio_api/call/predict", json={"data": [image]}, timeout=PATIENCE)
    if started.status_code != 200:
        return started.text
    event = started.json()["event_id"]
    return httpx.get(f"{url}gradio_api/call/predict/{event}", timeout=PATIENCE).text


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_no_payload_gives_a_file_of_the_server(url, site, secret, photos, meta):
    person, uploads = photos["person.png"], site / "uploads"
    (uploads / (64 * "b")).mkdir(exist_ok=True)
    link = uploads / (64 * "b") / "person.png"
    link.unlink(missing_ok=True)
    link.symlink_to(person)
    for path in (
        *(str(person), person.name, f"./{person.name}", f"{uploads}/../{person.name}", f"{uploads}/%2e%2e/person.png"),
        *(f"file://{person}", f"{person}\0.png", f"\0{person}", str(link), str(uploads), "", "/dev/stdin", "~/x.png"),
        *(f"/gradio_api/file={person}", str(secret), "/etc/passwd", 5000 * "x"),
    ):
        answer = asked(url, {"path": path, **meta})
        assert '"probabilities"' not in answer and SECRET not in answer and "root:" not in answer
        assert answer.startswith("event: error") or '"error": "' in answer, (path, answer)
    log = (site / "app.log").read_text()
    assert not [name for name in ("person.png", "x" * 100, secret.name) if name in log], (
        "what visitors give is not logged"
    )


@pytest.fixture
def trap() -> Iterator[tuple[str, list[str]]]:
    """Address of a server, and the requests that it has got."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    yield f"127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("host", ["trap", "example.com", "huggingface.co", "169.254.169.254"])
def test_the_server_asks_no_other_host(url, site, trap, host):
    netloc, requests = trap
    host = netloc if host == "trap" else host
    addresses = [f"http://{host}/x.png", f"https://{host}/x.png", f"HTTP://{host}/x.png", f"//{host}/x.png"]
    meta = {"meta": {"_type": "gradio.FileData"}}
    for address in addresses:
        for image in (
            {"path": address},
            {"path": address, **meta},
            {"url": address, **meta},
            {"path": "x", "url": address},
        ):
            answer = asked(url, image)
            assert '"probabilities"' not in answer
            assert answer.startswith("event: error") or '"error": "' in answer, answer
        for door in ("gradio_api/file=", "gradio_api/proxy=", "gradio_api/file/"):
            assert get(url, f"/{door}{quote(address, safe=':/')}")[0] in (400, 403, 404)
    assert not requests
    assert not (site / "outside").exists(), (site / "outside").read_text()


def test_an_address_is_refused_in_a_sentence(url):
    answer = asked(url, {"path": "https://example.com/x.png", "meta": {"_type": "gradio.FileData"}})
    assert "An address was given, and nothing is fetched here; give a picture, or upload it." in answer


def test_doors_that_the_page_does_not_use_are_closed(url, site):
    before = files_in(site).keys()
    session = "abc"
    httpx.post(f"{url}gradio_api/queue/join", json={"fn_index": 0, "data": [], "session_hash": session})
    for method, door in (
        *(("GET", "deep_link?session_hash=abc"), ("POST", "process_recording"), ("POST", "component_server")),
        *(("POST", "vibe-edit"), ("GET", "vibe-code"), ("GET", "proxy=https://example.hf.space/x")),
    ):
        files = {"video": b"x"} if method == "POST" else None
        assert httpx.request(method, f"{url}gradio_api/{door}", files=files, timeout=PATIENCE).status_code == 404
    for path in ("monitoring", "monitoring/summary"):
        assert httpx.get(f"{url}{path}", timeout=PATIENCE).status_code == 404
    assert files_in(site).keys() <= before


def test_a_file_is_no_door_whatever_its_name(url, photos):
    content = photos["person.png"].read_bytes()
    sent = httpx.post(f"{url}gradio_api/upload", files={"files": ("monitoring.png", content)}, timeout=PATIENCE)
    [path] = sent.raise_for_status().json()
    answer = httpx.get(f"{url}gradio_api/file={path}", timeout=PATIENCE)
    assert path.endswith("/monitoring.png") and (answer.status_code, answer.content) == (200, content)


@pytest.mark.parametrize(
    ("root", "path", "closed"),
    [
        *((root, f"{root}/gradio_api/deep_link", True) for root in ("", "/faces", "/a=b", "/monitor")),
        *(("/", f"{slashes}gradio_api/proxy=https://example.com/", True) for slashes in ("/", "//")),
        ("/faces", "/faces/monitoring/summary/", True),
        *((root, f"{root}/gradio_api/file=/srv/monitoring/a.png", False) for root in ("", "/faces", "/a=b")),
    ],
)
def test_doors_are_closed_and_files_are_not_under_any_path(root: str, path: str, closed: bool) -> None:
    asked, statuses = [], []

    async def page(scope: dict, receive: object, send: object) -> None:
        asked.append(scope["path"])

    async def send(message: dict) -> None:
        statuses.append(message.get("status"))

    guard = Guard(page, per_minute=1, file_bytes=1, sweep_seconds=1, keep_seconds=1)
    asyncio.run(guard({"type": "http", "method": "GET", "path": path, "root_path": root}, None, send))
    assert (asked, statuses[:1]) == (([], [404]) if closed else ([path], []))


def test_a_network_that_is_not_offered_is_refused(url, checkpoints):
    config = httpx.get(f"{url}config", timeout=PATIENCE).json()
    [selector] = [part["id"] for part in config["components"] if part["props"].get("elem_id") == "network"]
    [show] = [
        function["id"]
        for function in config["dependencies"]
        if [selector, "change"] in map(list, function["targets"])
        and function["inputs"] == [selector]
        and function["outputs"]
    ]
    said = {}
    for name in ("second", str(checkpoints / "second"), "../checkpoints/second", "third"):
        session = quote(name, safe="")
        body = {"fn_index": show, "data": [name], "session_hash": session}
        assert httpx.post(f"{url}gradio_api/queue/join", json=body, timeout=PATIENCE).status_code == 200
        messages = httpx.get(f"{url}gradio_api/queue/data", params={"session_hash": session}, timeout=PATIENCE).text
        [said[name]] = [
            message["success"]
            for line in messages.splitlines()
            if line and (message := json.loads(line.removeprefix("data: ")))["msg"] == "process_completed"
        ]
    assert list(said.values()) == [True, False, False, False]


@with_browser
def test_names_of_files_are_text(page: Page, photos, tmp_path):
    named = tmp_path / "<img src=x onerror=alert(1)> & <b>me<\N{DIVISION SLASH}b>.jpg"
    named.write_bytes(photos["pair.jpg"].read_bytes())
    broken = tmp_path / "<script>alert(2)<\N{DIVISION SLASH}script>'\"><i>.jpg"
    broken.write_text("no picture")
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose several photos at once").click()
    chooser.value.set_files([named, broken])
    rows = page.locator("#batch-result tbody tr")
    expect(rows).to_have_count(3)
    page.set_input_files("#photo-input input[type=file]", broken)
    expect(page.locator("#photo-summary")).to_contain_text("is not a picture")
    for place in ("#batch-result tbody", "#photo-summary"):
        assert page.locator(f"{place} :is(img, script, b, i)").count() == 0
    assert not dialogs


@pytest.fixture
def small_page(checkpoints, tmp_path, monkeypatch) -> Iterator[str]:
    """Address of a page, in this process, that takes files of a megabyte and five requests a minute."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(emotion.ui, "FILE_MEGABYTES", 1)
    monkeypatch.setattr(emotion.ui, "PER_MINUTE", 5)
    page = emotion.ui.build_page(load_networks(checkpoints / "first"))
    yield page.launch(prevent_thread_lock=True, quiet=True, **emotion.ui.launch_options())[1]
    page.close()


def test_size_and_rate_are_limited_by_settings(small_page):
    def post(path: str, **body: object) -> httpx.Response:
        return httpx.post(f"{small_page}gradio_api/{path}", timeout=PATIENCE, **body)

    assert post("upload", files={"files": bytes(900_000)}).status_code == 200
    assert post("upload", files={"files": bytes(1_200_000)}).status_code == 413
    several = [("files", (f"{number}.png", bytes(900_000))) for number in range(UPLOADS + 1)]
    assert post("upload", files=several).status_code == 413
    assert post("stream/none", content=bytes(1_100_000)).status_code == 413
    assert post("stream/none", content=iter([bytes(600_000)] * 2)).status_code == 413
    assert [post("call/predict", json={"data": [None]}).status_code for _ in range(3)] == [200, 200, 503]
    refused = post("call/predict", json={"data": [None]})
    assert refused.json() == {"detail": "This page is busy; please try again in a minute."}
    assert refused.headers["retry-after"] == "60"
    with pytest.raises(Exception, match="Please try again"):
        Client(small_page, verbose=False).predict(None, api_name="/predict")


def test_settings_are_documented_with_their_defaults():
    rows = (ROOT / "docs/reliability.md").read_text("utf-8").splitlines()
    help = (ROOT / "app.py").read_text("utf-8")
    for name, value in {
        "EMOTION_QUEUE": QUEUE,
        "EMOTION_PER_MINUTE": PER_MINUTE,
        "EMOTION_FILE_MB": FILE_MEGABYTES,
    }.items():
        assert [row for row in rows if row.startswith(f"| `{name}` |") and row.endswith(f"| {value} |")]
        assert name in help


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "1e3", " 5"])
def test_impossible_settings_are_refused(monkeypatch, value):
    monkeypatch.setenv("EMOTION_PER_MINUTE", value)
    with pytest.raises(ValueError, match=f"EMOTION_PER_MINUTE is '{value}'; give a whole number of at least 1"):
        setting("EMOTION_PER_MINUTE", 600)


def test_app_refuses_an_impossible_setting_in_one_sentence():
    environment = {**os.environ, "EMOTION_QUEUE": "many"}
    command = [sys.executable, str(ROOT / "app.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "app.py: EMOTION_QUEUE is 'many'; give a whole number of at least 1.\n"
