"""What several test files share: a small stand-in for a trained checkpoint, pictures, and the page in a browser."""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import av
import numpy as np
import pytest
import skimage.data
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from torch import nn

from emotion.checkpoint import save_checkpoint
from emotion.model import EmotionCNN
from emotion.predict import EmotionPredictor

if "PYTEST_XDIST_WORKER" in os.environ:
    # The cores are shared out already, and threads that wait for a core of another worker take much longer.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
else:
    # On a machine with many cores, more threads make networks this small slower.
    torch.set_num_threads(2)

ROOT = Path(__file__).resolve().parents[1]
LABELS = ("joy", "anger", "naïve calm")
HISTORY = [{"epoch": 1, "validation_accuracy": 0.25}, {"epoch": 2, "validation_accuracy": 0.75}]

PATIENCE = 120  # Seconds; a loaded machine takes long to import gradio and to start a browser.
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
# A page that claims to be of another host may hold one of this machine.
FLAGS += ["--disable-features=LocalNetworkAccessChecks"]
FLAGS += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
# Labels come with a checkpoint, perhaps a stranger's: one of them tries to be markup.
PAGE_LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "<b>mixed</b> & more")

with_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt-get install -y --no-install-recommends chromium"
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network that has never seen a face but has opinions, a temperature and names of its own."""
    torch.manual_seed(0)
    model = EmotionCNN(3, dropout_rate=0.0, labels=LABELS, temperature=1.7)
    nn.init.normal_(model.classifier[-1].weight, std=0.1)
    # With the statistics of real pictures in its batch norms, it tells pictures apart.
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
    patches = skimage.data.camera()[:480, :480].reshape(10, 48, 10, 48).transpose(0, 2, 1, 3).reshape(100, 1, 48, 48)
    with torch.no_grad():
        model.train()(torch.tensor(patches / 127.5 - 1, dtype=torch.float32))
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    metrics = {"plain": {"accuracy": 0.75}}
    return save_checkpoint(model, folder, history=HISTORY, metrics=metrics, training_config={"epochs": 2})


@pytest.fixture(scope="session")
def portrait() -> Image.Image:
    """A photo of one person, 512x512."""
    return Image.fromarray(skimage.data.astronaut())


@pytest.fixture(scope="session")
def group(portrait: Image.Image) -> Image.Image:
    """A picture of three people: the smallest on the left, the largest on the right."""
    person = portrait.crop((80, 0, 400, 320))
    picture = Image.new("RGB", (640, 320), (90, 110, 100))
    for left, side in ((0, 160), (160, 200), (360, 280)):
        picture.paste(person.resize((side, side), Image.Resampling.LANCZOS), (left, 20))
    return picture


@pytest.fixture(scope="session")
def scenery() -> Image.Image:
    """A photo without a face: a cup of coffee."""
    return Image.fromarray(skimage.data.coffee())


def files_in(*folders: Path) -> dict[Path, int]:
    """Every file below the folders, with its size; a server may be deleting some of them."""
    sizes = {}
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for file in (Path(parent, name) for name in names):
                with suppress(FileNotFoundError):
                    sizes[file] = file.lstat().st_size
    return sizes


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextmanager
def late_answers(page: Page, is_late: Callable[[str], bool]) -> Iterator[None]:
    """Hold back what the server says to some requests, at least one, until the end.

    Args:
        page: asks for the events.
        is_late: whether a request, given its body, is one of them.
    """
    held, is_slow = [], True

    def answer(route: Route) -> None:
        if is_slow and is_late(route.request.post_data):
            held.append((route, route.fetch()))
        else:
            route.continue_()

    page.route("**/queue/join*", answer)
    yield
    assert held
    is_slow = False
    for route, response in held:
        route.fulfill(response=response)


def write_clip(path: Path, pictures: Sequence[Image.Image], times: Sequence[float], codec: str = "libx264") -> Path:
    """Write a clip by the ending of its name; each picture is to be seen from its time on, in seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 30)
        stream.width, stream.height = pictures[0].size
        stream.bit_rate = 8_000_000
        stream.pix_fmt, stream.time_base = "yuvj420p" if codec == "mjpeg" else "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, portrait: Image.Image) -> Path:
    """A clip of 1.5 seconds, 480x320 at 10 frames a second, in which one person moves to the right."""
    pictures = []
    for number in range(16):
        pictures.append(Image.new("RGB", (480, 320), (90, 110, 90)))
        pictures[-1].paste(portrait.resize((280, 280)), (20 + 8 * number, 20))
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", pictures, [n / 10 for n in range(16)])


@pytest.fixture(scope="session")
def crops() -> np.ndarray:
    """Nine different grey pictures, uint8 (9, 48, 48)."""
    camera = skimage.data.camera()[:432, :432]
    return np.ascontiguousarray(camera.reshape(3, 144, 3, 144).transpose(0, 2, 1, 3).reshape(9, 144, 144)[:, ::3, ::3])


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page of `url` runs in; its uploads are in `uploads`."""
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="session")
def checkpoints(site: Path) -> Path:
    """A folder with the two networks that the page offers: "first", and "second", to which no class is ever clear."""
    for seed, (name, metrics) in enumerate({"first": None, "second": {"clear_answer": {"threshold": 1.0}}}.items()):
        torch.manual_seed(seed)
        model = EmotionCNN(labels=PAGE_LABELS)
        with torch.no_grad():
            model.classifier[-1].weight.mul_(200)  # Otherwise all classes are equally likely.
        save_checkpoint(model, site / "checkpoints" / name, metrics=metrics)
    return site / "checkpoints"


@pytest.fixture(scope="session")
def page_predictor(checkpoints: Path) -> EmotionPredictor:
    """What the page should answer, as long as no other network is chosen."""
    return EmotionPredictor.from_checkpoint(checkpoints / "first")


@contextmanager
def serving(folder: Path, variables: Mapping[str, str], *setup: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Address and process of app.py, which runs in `folder` and has its uploads in the folder `uploads` there.

    What it prints goes into `app.log`, and what it asks of other machines, which is refused, into `outside`.

    Args:
        folder: where it runs.
        variables: of its environment.
        setup: lines of Python to run first.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "uploads"), **variables}
    start = folder / "start.py"
    lines = (f"import sys; sys.path.insert(0, {str(ROOT)!r})", *setup, "import app", "sys.exit(app.main())")
    start.write_text("\n".join(lines))
    command = [ROOT / "tests/offline.py", folder / "outside", start, "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "app.log", "w") as log:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urlopen(address, timeout=10).close()
                break
            except (URLError, OSError):
                assert process.poll() is None and time.monotonic() < deadline, (folder / "app.log").read_text()
                time.sleep(0.5)
        yield address, process
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def server(site: Path, checkpoints: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """Address and process of the page, which is a server of the Model Context Protocol, too."""
    with serving(site, {"EMOTION_CHECKPOINT": str(checkpoints), "GRADIO_MCP_SERVER": "true"}) as served:
        yield served
    assert not (site / "outside").exists(), (site / "outside").read_text()


@pytest.fixture(scope="session")
def url(server: tuple[str, subprocess.Popen]) -> str:
    """Address of the page."""
    return server[0]


@pytest.fixture(scope="session")
def photos(site: Path, portrait: Image.Image, scenery: Image.Image) -> dict[str, Path]:
    """One photo with a face, one with two, one without any, and files that are none."""
    pair = Image.new("RGB", (1100, 620), (90, 110, 90))
    pair.paste(portrait, (0, 0))
    pair.paste(portrait.resize((400, 400)), (620, 200))
    names = ("person.png", "pair.jpg", "cup.jpg", "text.jpg", "empty.png", "cut.png", "large.png")
    files = {name: site / name for name in names}
    portrait.save(files["person.png"])
    pair.save(files["pair.jpg"])
    scenery.save(files["cup.jpg"])
    files["text.jpg"].write_text("This is no picture.")
    files["empty.png"].touch()
    files["cut.png"].write_bytes(files["person.png"].read_bytes()[:50_000])
    Image.new("L", (8000, 7500)).save(files["large.png"])
    return files


# Not for the session: while it is open, no test can run an event loop of its own.
@pytest.fixture(scope="module")
def browser(site: Path, portrait: Image.Image) -> Iterator[Browser]:
    """Chromium with a camera that sees `portrait`."""
    frame = io.BytesIO()
    portrait.save(frame, "JPEG")
    (site / "camera.mjpeg").write_bytes(20 * frame.getvalue())
    expect.set_options(timeout=1000 * PATIENCE)
    camera = f"--use-file-for-fake-video-capture={site / 'camera.mjpeg'}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, camera])
        yield browser
        browser.close()


@pytest.fixture
def requests() -> list[str]:
    """Addresses that `page` has asked for."""
    return []


@pytest.fixture(params=["light"])
def page(request: pytest.FixtureRequest, browser: Browser, url: str, requests: list[str]) -> Iterator[Page]:
    """The page on a phone; its parameter is the colour scheme."""
    context = browser.new_context(
        viewport={"width": 390, "height": 844},
        color_scheme=request.param,
        permissions=["camera", "clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    page.on("request", lambda sent: requests.append(sent.url))
    page.goto(url)
    page.locator("#photo-input input[type=file]").wait_for(state="attached")
    yield page
    context.close()


def serious_violations(page: Page) -> list[tuple[str, str]]:
    """Rule and first element of what axe finds on the page and calls serious or critical."""
    # What gradio has just filled is pale at first and fades in.
    expect(page.locator(".pending")).to_have_count(0)
    page.wait_for_function("!document.getAnimations().some((running) => running.transitionProperty == 'opacity')")
    violations = Axe().run(page).response["violations"]
    return [(v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in ("serious", "critical")]
