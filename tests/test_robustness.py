"""Corruptions against Pillow, SciPy and sums written out by hand, on drawn faces."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from test_evaluate import network

from emotion.data import FaceDataset
from emotion.demo import make_dataset
from emotion.evaluate import evaluate
from emotion.robustness import SEVERITIES, corrupt, measure_robustness

FACES = make_dataset(28, seed=5)
FACE = FACES.images[3].numpy()
CELLS = [(name, severity) for name, severities in SEVERITIES.items() for severity in severities]


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first.astype(float) - second)


@pytest.mark.parametrize(("name", "severity"), CELLS)
def test_a_corruption_repeats_itself_and_leaves_the_face_alone(name: str, severity: float) -> None:
    before = FACE.copy()
    result = corrupt(FACE, name, severity, rng())
    assert result.dtype == np.uint8
    assert result.shape == (48, 48)
    assert (result == corrupt(FACE, name, severity, rng())).all()
    assert (before == FACE).all()
    assert (result != FACE).any()


@pytest.mark.parametrize("name", SEVERITIES)
def test_each_severity_takes_the_face_further_away(name: str) -> None:
    # With the same draws; a corruption that ignored its severity would stand still.
    change = [
        np.mean([difference(corrupt(face, name, severity, rng()), face).mean() for face in FACES.images.numpy()])
        for severity in SEVERITIES[name]
    ]
    assert change[0] * 1.1 < change[1]
    assert change[1] * 1.1 < change[2]


@pytest.mark.parametrize("sigma", SEVERITIES["blur"])
def test_blur_is_scipys(sigma: float) -> None:
    expected = ndimage.gaussian_filter(FACE.astype(float), sigma, mode="mirror", truncate=4)
    assert difference(corrupt(FACE, "blur", sigma, rng()), expected).max() < 2


@pytest.mark.parametrize("std", SEVERITIES["noise"])
def test_noise_has_its_mean_and_deviation(std: float) -> None:
    grey = np.full((48, 48), 128, np.uint8)
    generator = rng()
    noise = np.stack([corrupt(grey, "noise", std, generator) for _ in range(50)]).astype(float) - 128
    assert noise.mean() == pytest.approx(0, abs=0.3)
    assert noise.std() == pytest.approx(std, rel=0.02)
    assert not (noise[0] == noise[1]).all()


@pytest.mark.parametrize("stops", SEVERITIES["brightness"])
def test_brightness_doubles_or_halves_the_light_per_stop(stops: float) -> None:
    generator = rng()
    results = {corrupt(FACE, "brightness", stops, generator).tobytes() for _ in range(20)}
    up, down = (np.minimum(np.rint(FACE * factor), 255).astype(np.uint8) for factor in (2**stops, 0.5**stops))
    assert results == {up.tobytes(), down.tobytes()}


@pytest.mark.parametrize("quality", SEVERITIES["jpeg"])
def test_jpeg_is_pillows(quality: int) -> None:
    stream = io.BytesIO()
    Image.fromarray(FACE).save(stream, "JPEG", quality=quality)
    expected = np.array(Image.open(stream))
    assert difference(expected, FACE).max() > 5
    assert difference(corrupt(FACE, "jpeg", quality, rng()), expected).max() <= 2


@pytest.mark.parametrize("degrees", SEVERITIES["rotation"])
def test_rotation_is_pillows_either_way(degrees: float) -> None:
    # Pillow fills corners with black: padded first, its corners hold the repeated edge.
    padded = Image.fromarray(np.pad(FACE, 24, mode="edge"))
    turned = [np.array(padded.rotate(sign * degrees, Image.Resampling.BILINEAR))[24:-24, 24:-24] for sign in (-1, 1)]
    generator = rng()
    results = [corrupt(FACE, "rotation", degrees, generator) for _ in range(20)]
    which = [min((0, 1), key=lambda k: difference(result, turned[k]).mean()) for result in results]
    assert set(which) == {0, 1}
    for result, k in zip(results, which, strict=True):
        # Both round positions and greys, at edges of some 100 grey levels a pixel.
        assert difference(result, turned[k]).mean() < 1
        assert difference(result, turned[k]).max() < 12


@pytest.mark.parametrize("side", SEVERITIES["occlusion"])
def test_occlusion_is_a_black_square_anywhere_in_the_picture(side: int) -> None:
    white = np.full((48, 48), 255, np.uint8)
    generator = rng()
    seen = np.zeros((48, 48), bool)
    for _ in range(400):
        result = corrupt(white, "occlusion", side, generator)
        rows, columns = np.nonzero(result == 0)
        assert len(rows) == side**2
        assert np.ptp(rows) == np.ptp(columns) == side - 1
        assert ((result == 0) | (result == 255)).all()
        seen |= result == 0
    # No part of the face is spared; a corner itself is hardly ever hit.
    assert seen[6:-6, 6:-6].all()
    assert seen.any(0).all() and seen.any(1).all()


def test_framing_is_the_part_of_a_larger_picture_that_its_draws_say() -> None:
    size, right, down = 0.08 * rng().standard_normal(3)
    side = 48 * np.exp(size)
    left, top = 24 + 48 * right - side / 2, 24 + 48 * down - side / 2
    padded = Image.fromarray(np.pad(FACE, 24, mode="edge"))
    box = (24 + left, 24 + top, 24 + left + side, 24 + top + side)
    expected = np.array(padded.transform((48, 48), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR))
    result = corrupt(FACE, "framing", 0.08, rng())
    assert difference(result, expected).mean() < 1
    assert difference(result, expected).max() < 12


@pytest.mark.parametrize("scatter", SEVERITIES["framing"])
def test_framing_scatters_as_much_as_it_says(scatter: float) -> None:
    # Positions as grey levels: 2 levels per pixel along each axis show size and shift of every frame.
    ramp = np.broadcast_to(np.arange(48) * 2 + 80, (48, 48)).astype(np.uint8)
    generator = rng()
    frames = np.stack([corrupt(ramp, "framing", scatter, generator) for _ in range(500)]).astype(float)
    middle = frames[:, :, 18:30].mean(1)  # away from the repeated edges
    slope = np.polyfit(np.arange(12), middle.T, 1)[0] / 2
    shift = (middle.mean(1) - ramp[0, 18:30].mean()) / 2 / 48
    assert np.log(slope).std() == pytest.approx(scatter, rel=0.15)
    assert shift.std() == pytest.approx(scatter, rel=0.15)


def test_an_unknown_corruption_is_refused() -> None:
    with pytest.raises(ValueError, match="corruption is 'rain'; give one of blur, noise"):
        corrupt(FACE, "rain", 1, rng())


def test_accuracy_is_that_of_the_corrupted_faces() -> None:
    model = network()
    result = measure_robustness(model, FACES, "PublicTest")
    assert {key: result[key] for key in ("split", "label_set", "rows")} == {
        "split": "PublicTest",
        "label_set": "fer2013",
        "rows": 28,
    }
    assert {name: len(row) for name, row in result["accuracy"].items()} == dict.fromkeys(SEVERITIES, 3)
    assert result["severities"].keys() == result["accuracy"].keys()
    assert len({value for row in result["accuracy"].values() for value in row}) > 3
    # Every face has draws of its own, which start anew at each severity.
    for name in ("jpeg", "framing"):
        for severity, accuracy in zip(SEVERITIES[name], result["accuracy"][name], strict=True):
            generator = np.random.default_rng(0)
            images = np.stack([corrupt(face, name, severity, generator) for face in FACES.images.numpy()])
            corrupted = FaceDataset(torch.from_numpy(images), FACES.targets, FACES.labels)
            assert accuracy == evaluate(model, corrupted)["accuracy"]
