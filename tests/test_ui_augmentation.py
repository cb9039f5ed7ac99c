"""The Augmentation tab shows what training sees, and says what each step has drawn."""

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from conftest import PATIENCE, with_browser
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from emotion.data import FaceDataset
from emotion.predict import EmotionPredictor
from emotion.trainer import FaceLoader, _derived_seed
from emotion.transforms import get_enhanced_transforms_grayscale_48
from emotion.ui.augmentation import DRAWS, RANDOM, trace
from emotion.ui.look import data_url

STEPS = [type(step).__name__ for step in get_enhanced_transforms_grayscale_48(training=True).steps]
GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "deployment.md"


@pytest.fixture(scope="module")
def crop(page_predictor: EmotionPredictor, photos: dict[str, Path]) -> np.ndarray:
    """The face that "person.png" shows."""
    return page_predictor.predict(photos["person.png"])[0].crop


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False)


@pytest.fixture
def page(browser: Browser, url: str, photos: dict[str, Path]) -> Iterator[Page]:
    """The tab on a phone, opened by a link, with a photo given."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    page.goto(f"{url}?tab=augmentation&seed=4&strength=1")
    give(page, photos["person.png"])
    expect(page.locator("#augmentation-result .draws img")).to_have_count(DRAWS)
    yield page
    context.close()


def give(page: Page, photo: Path) -> None:
    page.locator("#augmentation-input input[type=file]").wait_for(state="attached")
    page.set_input_files("#augmentation-input input[type=file]", photo)


def decoded(url: str) -> np.ndarray:
    kind, _, content = url.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def training_input(crop: np.ndarray, seed: int, strength: float) -> torch.Tensor:
    """A batch of one face as the loader would hand it to the network."""
    batch = torch.from_numpy(np.repeat(crop[None, None], DRAWS, axis=0))
    return get_enhanced_transforms_grayscale_48(training=True)(batch, strength, torch.Generator().manual_seed(seed))


def to_8_bits(images: torch.Tensor) -> np.ndarray:
    return np.clip(np.round((images.numpy()[:, 0] / 2 + 0.5) * 255), 0, 255).astype(np.uint8)


def test_last_view_is_what_the_trainers_loader_yields(crop):
    faces = FaceDataset(torch.from_numpy(np.repeat(crop[None], DRAWS, axis=0)), torch.ones(DRAWS, 1), ("any",))
    loader = FaceLoader(faces, DRAWS, get_enhanced_transforms_grayscale_48(training=True), seed=3)
    loader.epoch, loader.strength = 2, 0.7
    ((images, _),) = loader
    views = trace(crop, _derived_seed(3, 2, "augmentation 0"), 0.7, RANDOM)
    assert views[-1][2].numpy().tobytes() == images.numpy().tobytes()


def test_augment_needs_only_a_picture(client, photos, crop):
    endpoint = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/augment"]
    needed = {p["parameter_name"]: not p["parameter_has_default"] for p in endpoint["parameters"]}
    assert needed == {"image": True, "seed": False, "strength": False, "steps": False}
    item = client.predict(handle_file(photos["person.png"]), api_name="/augment")
    assert (item["image"], item["error"]) == ("person.png", None)
    assert [step["step"] for step in item["steps"]] == STEPS
    assert np.array_equal(decoded(item["face"]), crop)
    assert np.array_equal(decoded(item["draws"][0]), decoded(item["steps"][-1]["picture"]))
    assert np.array_equal([decoded(draw) for draw in item["draws"]], to_8_bits(training_input(crop, 0, 0.5)))


def test_augment_gives_what_each_step_has_drawn(client, photos, crop):
    item = client.predict(handle_file(photos["person.png"]), 7, 1.0, api_name="/augment")
    drawn = {step["step"]: step["parameters"] for step in item["steps"]}
    # The draws in the order of the steps, from the same generator.
    generator = torch.Generator().manual_seed(7)
    device = torch.device("cpu")
    for step in get_enhanced_transforms_grayscale_48(training=True).steps:
        wanted = step.draw(DRAWS, 1.0, generator, device)
        assert drawn[type(step).__name__].keys() == wanted.keys()
        for name, values in wanted.items():
            np.testing.assert_allclose(drawn[type(step).__name__][name], values[0].numpy(), rtol=1e-6)
    # The picture after the rotation is the face mirrored and turned, and nothing else.
    turned = Image.fromarray(crop[:, ::-1] if drawn["RandomHorizontalFlip"]["flip"] else crop).rotate(
        drawn["RandomRotation"]["degrees"], Image.Resampling.BILINEAR, fillcolor=128
    )
    shown = decoded(item["steps"][1]["picture"]).astype(int)
    assert np.abs(shown - np.asarray(turned))[9:-9, 9:-9].max() <= 1


def test_augment_without_a_step_keeps_the_other_draws(client, photos):
    photo = handle_file(photos["person.png"])
    full = client.predict(photo, 7, 1.0, RANDOM, api_name="/augment")
    without = client.predict(photo, 7, 1.0, [name for name in RANDOM if name != "RandomAffine"], api_name="/augment")
    for one, other in zip(full["steps"], without["steps"], strict=True):
        assert other["parameters"] == ({} if other["step"] == "RandomAffine" else one["parameters"])
    assert without["steps"][2]["picture"] == without["steps"][1]["picture"] == full["steps"][1]["picture"]
    nothing = client.predict(photo, 7, 1.0, [], api_name="/augment")
    assert {step["picture"] for step in nothing["steps"]} | set(nothing["draws"]) == {nothing["face"]}


def test_augment_says_what_is_wrong(client, url, photos):
    item = client.predict(handle_file(photos["text.jpg"]), api_name="/augment")
    assert item["error"].startswith("'text.jpg' is not a picture") and item["steps"] == item["draws"] == []
    with pytest.raises(AppError, match="1000"):
        client.predict(handle_file(photos["person.png"]), 1000, api_name="/augment")
    # A path that is already the server's, which gradio_client would upload.
    request = {"image": {"path": str(photos["person.png"])}}
    started = httpx.post(f"{url}gradio_api/call/v2/augment", json=request, timeout=PATIENCE).json()
    answer = httpx.get(f"{url}gradio_api/call/v2/augment/{started['event_id']}", timeout=PATIENCE).text
    assert answer.startswith("event: error") and "'person.png' was not uploaded" in answer


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_example_of_the_guide_answers(url, photos, crop):
    (example,) = re.findall(r"```bash\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    script = example.replace("http://127.0.0.1:7860/", url).replace("photo.jpg", str(photos["person.png"]))
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, timeout=PATIENCE, check=True)
    event, data = done.stdout.strip().split("\n")
    assert event == "event: complete"
    (item,) = json.loads(data.removeprefix("data: "))
    assert np.array_equal([decoded(draw) for draw in item["draws"]], to_8_bits(training_input(crop, 0, 1.0)))


@with_browser
def test_a_link_brings_the_settings_and_each_step_is_shown_on_a_phone(page, crop):
    cells = page.locator("#augmentation-result .steps li")
    expect(cells).to_have_count(1 + len(STEPS))
    pictures = [decoded(image.get_attribute("src")) for image in page.locator("#augmentation-result img").all()]
    draws = to_8_bits(training_input(crop, 4, 1.0))
    assert np.array_equal(pictures[0], crop)
    assert np.array_equal(pictures[len(STEPS)], draws[0])
    assert np.array_equal(pictures[1 + len(STEPS) :], draws)
    degrees = float(trace(crop, 4, 1.0, RANDOM)[1][1]["degrees"][0])
    expect(cells.nth(2)).to_contain_text(f"{abs(degrees):.1f}° {'anticlockwise' if degrees > 0 else 'clockwise'}")
    expect(page.get_by_role("status").filter(has_text="One face was found")).to_be_visible()

    # The result is led to, and the sliders stay in sight.
    expect(cells.first).to_be_in_viewport()
    page.locator("#augmentation-result .draws img").last.scroll_into_view_if_needed()
    expect(page.locator("#augmentation-seed")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    facts = page.locator("#augmentation-result img").evaluate_all(
        "all => all.map(i => [i.alt, getComputedStyle(i).imageRendering, i.naturalWidth, i.clientWidth % 48])"
    )
    assert len({alt for alt, *_ in facts}) == len(facts) == 1 + len(STEPS) + DRAWS
    assert all(alt and rendering == "pixelated" and size == [48, 0] for alt, rendering, *size in facts)


@with_browser
def test_sliders_and_switches_change_the_pictures(page, crop):
    joined = []
    page.on("request", lambda request: "/queue/join" in request.url and joined.append(request))
    page.locator("#augmentation-seed input[type=range]").focus()
    for _ in range(25):
        page.keyboard.press("ArrowRight")
    draws = to_8_bits(training_input(crop, 29, 1.0))
    last = page.locator("#augmentation-result .draws img").last
    expect(last).to_have_attribute("src", data_url(Image.fromarray(draws[-1]), "PNG"))
    # What the slider passed through while the server was busy has been skipped.
    assert 0 < len(joined) < 25

    mirror = page.locator("#augmentation-result .steps li").nth(1)
    page.get_by_label("Mirror").uncheck()
    expect(mirror).to_contain_text("off")
    assert np.array_equal(decoded(mirror.locator("img").get_attribute("src")), crop)
    page.get_by_label("Mirror").check()
    expect(mirror).not_to_contain_text("off")

    page.locator("#augmentation-strength input[type=number]").fill("0")
    expect(page.locator("#augmentation-result .steps li").nth(2)).to_contain_text("no change")
    assert all(np.array_equal(decoded(i.get_attribute("src")), crop) for i in page.locator(".draws img").all())


@with_browser
def test_other_photos_replace_the_face_and_bad_ones_say_why(page, photos):
    for name, sentence, draws in [
        ("text.jpg", "'text.jpg' is not a picture", 0),
        ("cup.jpg", "No face was found", DRAWS),
        ("pair.jpg", "2 faces were found; the largest is used", DRAWS),
    ]:
        page.locator("#augmentation-input button[aria-label='Remove Image']").click()
        expect(page.locator("#augmentation-result img")).to_have_count(0)
        give(page, photos[name])
        expect(page.locator("#augmentation-summary")).to_contain_text(sentence)
        expect(page.locator("#augmentation-result .draws img")).to_have_count(draws)
