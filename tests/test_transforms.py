"""Each step against an independent implementation: PIL, OpenCV or torchvision."""

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from skimage import data

from emotion.transforms import (
    AdaptiveHistogramEqualization,
    GrayscaleNoise,
    Normalize,
    Pipeline,
    RandomAffine,
    RandomBrightness,
    RandomContrast,
    RandomHorizontalFlip,
    RandomPerspectiveSmall,
    RandomRotation,
    RandomSharpness,
    Step,
    ToTensor,
    get_enhanced_transforms_grayscale_48,
    warp,
)

NAMES = [
    "RandomHorizontalFlip",
    "RandomRotation",
    "RandomAffine",
    "RandomPerspectiveSmall",
    "RandomContrast",
    "RandomBrightness",
    "RandomSharpness",
    "AdaptiveHistogramEqualization",
    "ToTensor",
    "Normalize",
    "GrayscaleNoise",
]
ON_PICTURES = [step for step in get_enhanced_transforms_grayscale_48(True).steps if step.random][:8]


@pytest.fixture(scope="module")
def face() -> Image.Image:
    return Image.fromarray(data.astronaut()).convert("L").crop((150, 0, 310, 160)).resize((48, 48), Image.LANCZOS)


@pytest.fixture(scope="module")
def batch(face: Image.Image) -> torch.Tensor:
    pictures = [face, ImageOps.mirror(face), face.rotate(5), ImageOps.autocontrast(face)]
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures]))[:, None]


def applied(step: Step, image: Image.Image, **params: object) -> np.ndarray:
    """The step with given parameters instead of drawn ones, as 8-bit grey levels."""
    floats = torch.from_numpy(np.array(image))[None, None].float() / 255
    tensors = {name: torch.as_tensor(value)[None] for name, value in params.items()}
    return (step.apply(floats, tensors)[0, 0] * 255).round().numpy()


def largest_difference(ours: np.ndarray, reference: object, border: int = 0) -> float:
    inner = slice(border, -border or None)
    return np.abs(ours - np.asarray(reference).astype(float))[inner, inner].max()


def test_training_has_the_eleven_steps_in_order() -> None:
    names = [type(step).__name__ for step in get_enhanced_transforms_grayscale_48(training=True).steps]
    assert names == NAMES


def test_validation_is_to_tensor_and_normalize(face: Image.Image) -> None:
    result = get_enhanced_transforms_grayscale_48(training=False)(face)
    reference = tv.normalize(tv.to_tensor(face), [0.5], [0.5])
    torch.testing.assert_close(result, reference)


def test_basic_augmentation_moves_pixels_only() -> None:
    names = [type(s).__name__ for s in get_enhanced_transforms_grayscale_48(True, advanced_augmentation=False).steps]
    assert names == [*NAMES[:3], "ToTensor", "Normalize"]


def test_flip_is_pils_mirror(face: Image.Image) -> None:
    assert largest_difference(applied(RandomHorizontalFlip(), face, flip=True), ImageOps.mirror(face)) == 0
    floats = torch.rand(3, 1, 48, 48)
    assert torch.equal(RandomHorizontalFlip(p=1.0)(floats), tv.hflip(floats))
    assert largest_difference(applied(RandomHorizontalFlip(), face, flip=False), face) == 0


@pytest.mark.parametrize("degrees", [-20.0, 7.5, 20.0])
def test_rotation_is_pils(face: Image.Image, degrees: float) -> None:
    reference = face.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=128)
    ours = applied(RandomRotation(), face, degrees=degrees)
    assert largest_difference(ours, reference, border=9) <= 1
    # Outside the picture is the fill, as with PIL; only the seam differs, where PIL does not interpolate.
    assert (np.abs(ours - np.asarray(reference)) > 1).mean() < 0.08


@pytest.mark.parametrize(
    ("shift", "scale", "shear"), [((3, -2), 1.0, 0.0), ((0, 0), 1.1, 0.0), ((0, 0), 1.0, 8.0), ((-4, 1), 0.9, -10.0)]
)
def test_affine_is_opencvs(face: Image.Image, shift: tuple[int, int], scale: float, shear: float) -> None:
    tangent, centre = np.tan(np.radians(shear)), 23.5
    # Forward map in pixels: shear, scale about the centre, then shift.
    forward = np.array([[scale, -scale * tangent, 0], [0, scale, 0]])
    forward[:, 2] = np.array([centre, centre]) - forward[:, :2] @ [centre, centre] + shift
    reference = cv2.warpAffine(
        np.asarray(face).astype(np.float32), forward, (48, 48), flags=cv2.INTER_LINEAR, borderValue=128
    )
    ours = applied(RandomAffine(), face, shift_x=shift[0] / 24, shift_y=shift[1] / 24, scale=scale, shear=shear)
    # OpenCV places samples on a grid of 1/32 pixel.
    assert np.abs(ours - reference).mean() < 1
    assert largest_difference(ours, reference) <= 8


def test_perspective_is_torchvisions(face: Image.Image) -> None:
    corners = np.array([[0.05, -0.08], [-0.1, 0.1], [0.12, -0.03], [-0.06, -0.09]], dtype=np.float32)
    ours = applied(RandomPerspectiveSmall(), face, corners=torch.from_numpy(corners))
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    # The corner of the output shows what lies at the moved corner of the input.
    reference = tv.perspective(
        torch.from_numpy(np.asarray(face).copy())[None].float(),
        startpoints=((square + corners + 1) * 24).tolist(),
        endpoints=((square + 1) * 24).tolist(),
        fill=[128.0],
    )[0].numpy()
    assert largest_difference(ours, reference, border=5) <= 1


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.9])
@pytest.mark.parametrize(
    ("step", "enhancer"),
    [
        (RandomContrast(), ImageEnhance.Contrast),
        (RandomBrightness(), ImageEnhance.Brightness),
        (RandomSharpness(), ImageEnhance.Sharpness),
    ],
)
def test_factor_steps_are_pils(face: Image.Image, step: Step, enhancer: type, factor: float) -> None:
    # PIL rounds its blurred and mean pictures to whole grey levels before blending.
    assert largest_difference(applied(step, face, factor=factor), enhancer(face).enhance(factor)) <= 1


@pytest.mark.parametrize(("clip_limit", "tiles"), [(2.0, 4), (4.0, 8), (2.0, 2), (40.0, 4), (2.0, 5)])
def test_equalization_is_opencvs(face: Image.Image, clip_limit: float, tiles: int) -> None:
    ours = np.asarray(AdaptiveHistogramEqualization(clip_limit, tiles)(face)).astype(int)
    reference = cv2.createCLAHE(clip_limit, (tiles, tiles)).apply(np.asarray(face))
    assert np.abs(ours - reference).max() <= 1
    assert (ours != reference).mean() < 0.02


@pytest.mark.parametrize("size", [(48, 50), (47, 48), (45, 50)])
def test_equalization_pads_as_opencv_does(face: Image.Image, size: tuple[int, int]) -> None:
    picture = face.resize(size)
    ours = np.asarray(AdaptiveHistogramEqualization()(picture)).astype(int)
    assert np.abs(ours - cv2.createCLAHE(2.0, (4, 4)).apply(np.asarray(picture))).max() <= 1


def test_equalization_strength_is_its_probability(batch: torch.Tensor) -> None:
    many = batch[:1].repeat(2000, 1, 1, 1)
    changed = (AdaptiveHistogramEqualization()(many, 0.25, torch.Generator().manual_seed(0)) != many).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.3
    assert bool((AdaptiveHistogramEqualization()(many) != many).flatten(1).any(1).all())


def test_to_tensor_and_normalize_are_torchvisions(face: Image.Image) -> None:
    floats = tv.to_tensor(face)
    torch.testing.assert_close(ToTensor()(face), floats)
    torch.testing.assert_close(Normalize()(floats), tv.normalize(floats, [0.5], [0.5]))


def test_noise_has_its_standard_deviation() -> None:
    noise = GrayscaleNoise(0.05)(torch.zeros(1024, 1, 48, 48), 0.5, torch.Generator().manual_seed(0))
    # Uniform from 0 to half of 0.05: mean 0.0125, standard deviation 0.025 / sqrt(12).
    std = noise.std(dim=(1, 2, 3))
    assert abs(float(std.mean()) - 0.0125) < 0.0006
    assert abs(float(std.std()) - 0.025 / 12**0.5) < 0.0004
    assert float(std.max()) < 0.026
    assert abs(float(noise.mean())) < 0.0005
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize("step", ON_PICTURES, ids=repr)
def test_strength_zero_is_the_identity(step: Step, batch: torch.Tensor) -> None:
    assert torch.equal(step(batch, 0.0), batch)


def test_pipeline_at_strength_zero_is_validation(batch: torch.Tensor) -> None:
    training, validation = (get_enhanced_transforms_grayscale_48(flag) for flag in (True, False))
    assert torch.equal(training(batch, 0.0), validation(batch))


@pytest.mark.parametrize("step", ON_PICTURES, ids=repr)
def test_a_picture_a_tensor_and_a_batch_of_one_agree(step: Step, face: Image.Image) -> None:
    pixels = torch.from_numpy(np.array(face))[None]
    from_picture = np.asarray(step(face, 0.9, torch.Generator().manual_seed(3)))
    from_tensor = step(pixels, 0.9, torch.Generator().manual_seed(3))
    from_batch = step(pixels[None], 0.9, torch.Generator().manual_seed(3))
    assert np.array_equal(from_picture, from_tensor[0].numpy())
    assert torch.equal(from_tensor, from_batch[0])


@pytest.mark.parametrize("step", ON_PICTURES, ids=repr)
def test_images_of_a_batch_are_drawn_independently(step: Step, batch: torch.Tensor) -> None:
    same = batch[:1].repeat(32, 1, 1, 1)
    result = step(same, 0.5, torch.Generator().manual_seed(0))
    different = len({picture.numpy().tobytes() for picture in result})
    assert different == 2 if isinstance(step, RandomHorizontalFlip | AdaptiveHistogramEqualization) else different > 24


RANGES = [
    (RandomRotation(), "degrees", -20, 20),
    (RandomAffine(), "shift_x", -0.2, 0.2),
    (RandomAffine(), "shift_y", -0.2, 0.2),
    (RandomAffine(), "scale", 0.9, 1.1),
    (RandomAffine(), "shear", -10, 10),
    (RandomPerspectiveSmall(), "corners", -0.16, 0.16),
    (RandomContrast(), "factor", 0.7, 1.4),
    (RandomBrightness(), "factor", 0.8, 1.3),
    (RandomSharpness(), "factor", 0.6, 2.0),
]


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize(("step", "name", "low", "high"), RANGES, ids=lambda value: repr(value))
def test_draws_fill_their_range(step: Step, name: str, low: float, high: float, strength: float) -> None:
    drawn = step.draw(4000, strength, torch.Generator().manual_seed(0), torch.device("cpu"))[name]
    # Factors shrink towards 1, everything else towards 0.
    neutral = 1 if name in ("factor", "scale") else 0
    low, high = (neutral + strength * (end - neutral) for end in (low, high))
    assert low <= drawn.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < drawn.max() <= high
    assert float(drawn.mean()) == pytest.approx((low + high) / 2, abs=0.02 * (high - low))


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_half_of_the_pictures_are_mirrored_at_any_strength(strength: float) -> None:
    drawn = RandomHorizontalFlip().draw(4000, strength, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert float(drawn["flip"].float().mean()) == pytest.approx(0.5, abs=0.03)


def test_a_generator_decides_the_draws(batch: torch.Tensor) -> None:
    pipeline = get_enhanced_transforms_grayscale_48(True)
    first, again, other = (pipeline(batch, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_last_view_is_what_training_sees(face: Image.Image) -> None:
    pipeline = get_enhanced_transforms_grayscale_48(True)
    views = pipeline.trace(face, 0.8, torch.Generator().manual_seed(5))
    assert [type(step).__name__ for step, _, _ in views] == NAMES
    assert torch.equal(views[-1][2], pipeline(face, 0.8, torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("index", [0, 2, 6, 10])
def test_a_step_that_is_off_does_nothing_and_leaves_the_other_draws(batch: torch.Tensor, index: int) -> None:
    pipeline = get_enhanced_transforms_grayscale_48(True)
    off = pipeline.steps[index]
    full = pipeline.trace(batch, 1.0, torch.Generator().manual_seed(5))
    views = pipeline.trace(batch, 1.0, torch.Generator().manual_seed(5), off=[off])
    for (step, drawn, _), (_, params, _) in zip(full, views, strict=True):
        assert params.keys() == (set() if step is off else drawn.keys())
        assert all(torch.equal(params[name], drawn[name]) for name in params)
    before = views[index - 1][2] if index else batch / 255
    assert torch.equal(views[index][2], before)
    assert not torch.equal(full[index][2], before)


def test_geometry_is_interpolated_once(batch: torch.Tensor) -> None:
    # Turning by an angle and back must give the picture itself; two interpolations would have blurred it.
    class Turn(RandomRotation):
        def draw(self, count, strength, generator, device):
            return {"degrees": torch.full((count,), self.degrees)}

    floats = batch.float() / 255
    there_and_back = Pipeline([Turn(13.0), Turn(-13.0)])(floats)
    torch.testing.assert_close(there_and_back, floats, atol=1e-4, rtol=0)
    twice = Turn(-13.0)(Turn(13.0)(floats))
    assert (twice - floats)[..., 12:-12, 12:-12].abs().max() > 0.02


def test_composition_applies_the_earlier_step_first(batch: torch.Tensor) -> None:
    floats = batch.float() / 255
    affine, turn = RandomAffine(), RandomRotation()
    one = torch.ones(len(batch))
    shift = affine.matrix({"shift_x": one * 0.25, "shift_y": one * 0, "scale": one, "shear": one * 0})
    rotation = turn.matrix({"degrees": one * 20})
    in_turn = warp(warp(floats, shift), rotation)
    at_once = warp(floats, shift @ rotation)
    assert (in_turn - at_once)[..., 14:-14, 14:-14].abs().mean() < 0.02
    assert (in_turn - warp(floats, rotation @ shift))[..., 14:-14, 14:-14].abs().mean() > 0.04


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    strength=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_any_size_and_strength_stay_in_range(height: int, width: int, strength: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randint(0, 256, (2, 1, height, width), dtype=torch.uint8, generator=generator)
    for step in ON_PICTURES:
        result = step(picture, strength, generator)
        assert result.shape == picture.shape
        assert result.dtype == torch.uint8
    assert get_enhanced_transforms_grayscale_48(True)(picture, strength, generator).isfinite().all()


@pytest.mark.parametrize(
    ("image", "strength", "sentence"),
    [
        (torch.zeros(3, 48, 48), 1.0, r"\(3, 48, 48\); give \(1, H, W\)"),
        (torch.zeros(1, 48, 48, dtype=torch.int32), 1.0, "torch.int32; give uint8"),
        (np.zeros((48, 48)), 1.0, "ndarray; give a PIL image or a tensor"),
        (torch.zeros(1, 48, 48), 1.5, "strength is 1.5; give a number from 0"),
        (torch.zeros(1, 48, 48), float("nan"), "strength is nan"),
    ],
)
def test_wrong_input_gets_one_sentence(image: object, strength: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        RandomRotation()(image, strength)
    with pytest.raises(ValueError, match=sentence):
        get_enhanced_transforms_grayscale_48(True)(image, strength)


def test_float_steps_refuse_8_bit_pixels() -> None:
    with pytest.raises(ValueError, match="8-bit pixels; give a float tensor"):
        Normalize()(torch.zeros(1, 48, 48, dtype=torch.uint8))
