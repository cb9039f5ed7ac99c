"""Links into the page where it is embedded: in the frame of the Hub's page, and behind a proxy under a path."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import pytest
from conftest import PATIENCE, with_browser
from playwright.sync_api import Browser, FrameLocator, Page, expect

import emotion.ui
from emotion.networks import load_networks

LINK = "?tab=augmentation&seed=7&strength=0.8"
OUTER = """<!doctype html><title>Space</title><script>
window.told = [];
addEventListener("message", ({{ data }}) => data.queryString && told.push(data.queryString));
</script><iframe src="{url}" width="1000" height="800"></iframe>"""


def is_restored(page: Page | FrameLocator) -> None:
    expect(page.get_by_role("tab", name="Augmentation")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#augmentation-seed input[type=number]")).to_have_value("7")
    expect(page.locator("#augmentation-strength input[type=number]")).to_have_value("0.8")


@with_browser
@pytest.mark.parametrize("outer", ["https://huggingface.co/spaces/anna/demo", "https://elsewhere.test/"])
def test_a_link_is_restored_in_a_frame_and_only_the_hub_is_told_of_changes(
    browser: Browser, url: str, outer: str
) -> None:
    page = browser.new_page()
    # Around a Space, the Hub's page hands its own query to the frame, and shows what the frame tells it.
    html = OUTER.format(url=url + LINK)
    page.route(f"{outer}**", lambda route: route.fulfill(body=html, content_type="text/html"))
    page.goto(outer)
    frame = page.frame_locator("iframe")
    is_restored(frame)
    frame.locator("#augmentation-seed input[type=number]").fill("8")
    page.frames[1].wait_for_function("location.search.includes('seed=8')")
    page.wait_for_timeout(200)
    wanted = {"tab": ["augmentation"], "network": ["first"], "seed": ["8"], "strength": ["0.8"]}
    assert [parse_qs(query) for query in page.evaluate("told.slice(-1)")] == [wanted] * ("huggingface" in outer)
    page.close()


@with_browser
def test_a_link_is_restored_and_a_photo_answered_under_a_path(
    browser: Browser, checkpoints: Path, photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/faces")
    served = emotion.ui.build_page(load_networks(checkpoints / "first"))
    served.launch(prevent_thread_lock=True, quiet=True, **emotion.ui.launch_options())
    behind = f"http://127.0.0.1:{served.server_port}"

    class Proxy(BaseHTTPRequestHandler):
        """Hands what stands under /faces to the page, which does not see that part of the path."""

        def do_GET(self) -> None:
            if not self.path.startswith("/faces/"):
                self.send_error(404)
                return
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "accept-encoding"}
            address = behind + self.path.removeprefix("/faces")
            with httpx.stream(self.command, address, content=content, headers=headers, timeout=PATIENCE) as answer:
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "content-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                for part in answer.iter_bytes():
                    self.wfile.write(part)
                    self.wfile.flush()

        do_POST = do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            """Be silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.daemon_threads, proxy.block_on_close = True, False
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        page = browser.new_page()
        missed = []
        page.on("response", lambda answer: answer.status >= 400 and missed.append(answer.url.split("/")[-1]))
        page.goto(f"http://127.0.0.1:{proxy.server_port}/faces/{LINK}")
        is_restored(page)
        page.get_by_role("tab", name="Photo").click()
        page.set_input_files("#photo-input input[type=file]", photos["person.png"])
        expect(page.locator("#photo-summary")).to_contain_text("One face was found")
        assert page.evaluate("location.pathname") == "/faces/"
        assert set(missed) <= {"favicon.ico"}
        page.close()
        proxy.shutdown()
    served.close(verbose=False)
