"""Take the pictures of the page that the README shows: `python -m docs.screenshots`, with Chromium installed.

The person in them is Eileen Collins: a NASA portrait in the public domain, which scikit-image carries. The camera sees
an example face, which is nobody's, pass from one expression to the next.
"""

import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import av
import skimage.data
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from docs.make import IMAGES
from emotion.checkpoint import atomic_write
from emotion.networks import load_networks
from emotion.ui import build_page, launch_options
from emotion.ui.inputs import CLIP_RATE, CLIPS, draw_clip

PATIENCE: Final = 120_000  # milliseconds
LIVE_SECONDS: Final = 27
"""How long the camera runs, so that the timeline has something to show."""
CAMERA_RATE: Final = 30
"""Pictures a second that Chromium takes a film of JPEGs to have."""
SLOWER: Final = 2
"""Times as long as in the example clip, each expression lasts."""


def photo(page: Page, portrait: Path) -> None:
    """The Photo tab with a portrait and the map of the evidence."""
    page.set_input_files("#photo-input input[type=file]", portrait)
    page.locator("#photo-result .face").wait_for()
    page.locator("#photo-evidence input").check()
    page.locator("#photo-result img[alt*=evidence]").first.wait_for()


def live(page: Page, portrait: Path) -> None:
    """The Live tab with a camera that sees an example face."""
    page.get_by_role("tab", name="Live").click()
    page.get_by_text("Click to Access Webcam").click()
    page.locator("#live-camera .capture-button").click()
    page.locator("#live-result .face").wait_for()
    page.wait_for_timeout(1000 * LIVE_SECONDS)
    # The sentence follows the bars when a screen reader has had the time for the one before: soon after, they agree.
    for agree in (False, True):
        page.wait_for_function(
            """(agree) => {
              const [said, title] = ["#live-summary p", "#live-result h2 span:last-child"].map(
                  (name) => document.querySelector(name).innerText);
              return agree === (said === `One face: ${title.split(",")[0]}.`);
            }""",
            arg=agree,
        )
    page.eval_on_selector("#live-camera video", "(video) => video.pause()")  # the face of which they speak


def film(file: Path) -> None:
    """Write what the camera sees, one JPEG after the other."""
    frames = io.BytesIO()
    with av.open(io.BytesIO(draw_clip(CLIPS["one face"]))) as clip:
        for frame in clip.decode(video=0):
            picture = Image.new("RGB", (640, 480), (128, 128, 128))
            # Between the camera's name and its button.
            picture.paste(frame.to_image().resize((300, 300), Image.Resampling.BICUBIC), (260, 60))
            for _ in range(SLOWER * CAMERA_RATE // CLIP_RATE):
                picture.save(frames, "JPEG")
    file.write_bytes(frames.getvalue())


SHOTS: Final[dict[str, tuple[Callable[[Page, Path], None], int, str]]] = {
    "photo": (photo, 1000, "light"),
    "phone": (photo, 390, "dark"),
    "live": (live, 1000, "light"),
}
"""What to do on the page, its width in pixels, and the colour scheme, by the picture's name."""


def main() -> int:
    """Take all pictures; returns the exit code."""
    portrait = Image.fromarray(skimage.data.astronaut())
    with tempfile.TemporaryDirectory() as folder:
        file, camera = Path(folder, "portrait.png"), Path(folder, "camera.mjpeg")
        portrait.save(file)
        film(camera)
        _, url, _ = build_page(load_networks()).launch(prevent_thread_lock=True, quiet=True, **launch_options())
        flags = [
            "--no-sandbox",
            "--disable-gpu",
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
        ]
        flags.append(f"--use-file-for-fake-video-capture={camera}")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
            for name, (act, width, scheme) in SHOTS.items():
                context = browser.new_context(
                    viewport={"width": width, "height": 844}, color_scheme=scheme, permissions=["camera"]
                )
                context.set_default_timeout(PATIENCE)
                page = context.new_page()
                page.goto(url)
                page.locator("#photo-input input[type=file]").wait_for(state="attached")
                act(page, file)
                page.mouse.move(1, 1)
                page.wait_for_timeout(1000)
                with atomic_write(IMAGES / f"{name}.png") as target:
                    # A phone shows what it has scrolled to, the answer.
                    page.screenshot(path=target, type="png", full_page=width > 390)
                context.close()
            browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
