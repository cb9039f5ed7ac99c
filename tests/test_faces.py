"""Photo to crops, against NumPy, OpenCV, Pillow's own readers and a photo whose landmarks were measured by eye."""

import importlib.util
import io
import math
import re
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import joblib
import numpy as np
import pytest
import skimage.data
from corpus import greedy_table, tiff
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from emotion.faces import MAX_PIXELS, Face, FaceDetector, _orientation, crop_face, crop_whole, open_image

# Measured by eye in an eightfold enlargement of skimage's astronaut (NASA, public domain; 512x512): pupils, tip of the
# nose, corners of the mouth; and a box from the hairline to the chin.
ROOT = Path(__file__).parents[1]
ASTRONAUT_LANDMARKS = np.array([(203.4, 101.4), (247.1, 103.4), (225.7, 126.7), (204.0, 140.1), (243.6, 141.7)])
ASTRONAUT_BOX = (181, 66, 90, 111)


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    return Image.fromarray(skimage.data.astronaut())


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes x, y, w, h."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def turned(image: Image.Image, degrees: float) -> tuple[Image.Image, np.ndarray]:
    """The photo turned clockwise on a grey canvas that holds it, and the 2x3 matrix from old to new pixels."""
    width, height = image.size
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), -degrees, 1)
    matrix[:, 2] += 100
    pixels = cv2.warpAffine(np.asarray(image), matrix, (width + 200, height + 200), borderValue=(128, 128, 128))
    return Image.fromarray(pixels), matrix


# --- the networks ---


def keras_weights(name: str) -> list[np.ndarray]:
    folder = Path(importlib.util.find_spec("mtcnn").origin).parent
    return joblib.load(folder / "assets" / "weights" / f"{name}.lz4")


def numpy_network(name: str, image: np.ndarray, pools: list[tuple[int, str] | None]) -> list[np.ndarray]:
    """The Keras networks written from their definition: image (H, W, 3), kernels (h, w, in, out), channels last."""
    weights = iter(keras_weights(name))
    maps = image
    for pool in pools:
        kernel, bias, slope = next(weights), next(weights), next(weights).reshape(-1)
        windows = np.lib.stride_tricks.sliding_window_view(maps, kernel.shape[:2], axis=(0, 1))
        maps = np.einsum("yxihw,hwio->yxo", windows, kernel) + bias
        maps = np.where(maps > 0, maps, slope * maps)
        if pool:
            size, padding = pool
            # TensorFlow's 'same': as many windows as strides fit, the odd row of padding behind.
            count = [-(-n // 2) if padding == "same" else (n - size) // 2 + 1 for n in maps.shape[:2]]
            behind = [max(0, (c - 1) * 2 + size - n) for c, n in zip(count, maps.shape[:2], strict=True)]
            maps = np.pad(maps, [(0, behind[0]), (0, behind[1]), (0, 0)], constant_values=-np.inf)
            windows = np.lib.stride_tricks.sliding_window_view(maps, (size, size), axis=(0, 1))
            maps = windows[::2, ::2].max(axis=(3, 4))[: count[0], : count[1]]
    if name != "pnet":
        maps = maps.transpose(1, 0, 2).reshape(-1) @ next(weights) + next(weights)
        maps = np.where(maps > 0, maps, next(weights) * maps)
    heads = []
    for kernel, bias in zip(weights, weights, strict=True):
        heads.append(maps @ kernel.reshape(kernel.shape[-2:]) + bias)
    exponentials = np.exp(heads[-1])
    heads[-1] = (exponentials / exponentials.sum(axis=-1, keepdims=True))[..., 1]
    return heads


@pytest.mark.parametrize(
    ("name", "attribute", "shape", "pools"),
    [
        ("pnet", "proposal", (27, 20), [(2, "same"), None, None]),
        ("rnet", "refinement", (24, 24), [(3, "same"), (3, "valid"), None]),
        ("onet", "output", (48, 48), [(3, "same"), (3, "valid"), (2, "same"), None]),
    ],
)
def test_networks_compute_what_keras_defines(
    detector: FaceDetector, name: str, attribute: str, shape: tuple[int, int], pools: list
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    outputs = getattr(detector, attribute).run(None, {"pictures": image[None]})
    expected = numpy_network(name, (image - 127.5) / 128, pools)
    assert len(outputs) == len(expected)
    for output, reference in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(np.moveaxis(output[0], 0, -1).squeeze(), reference.squeeze(), atol=2e-5)


def test_weights_are_opened_only_if_they_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(importlib.util.find_spec("mtcnn").origin).parent / "assets" / "weights"
    own = shutil.copytree(folder, tmp_path / "mtcnn" / "assets" / "weights")
    (tmp_path / "mtcnn" / "__init__.py").touch()
    started = tmp_path / "started"
    joblib.dump(Opens(started), own / "onet.lz4")
    joblib.load(own / "onet.lz4")
    assert started.exists()  # as a pickle may
    started.unlink()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mtcnn", raising=False)
    with pytest.raises(ValueError, match=r"onet\.lz4 is not of mtcnn 1\.0\.0; run 'pip install --force-reinstall"):
        FaceDetector()
    assert not started.exists()


class Opens:
    """A pickle of it makes a file when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def test_detector_imports_neither_tensorflow_nor_the_code_of_mtcnn() -> None:
    code = "import sys, emotion.faces as f; f.FaceDetector(); print({'mtcnn', 'tensorflow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- finding faces ---


def test_finds_the_astronaut_and_her_landmarks(detector: FaceDetector, astronaut: Image.Image) -> None:
    (face,) = detector.detect(astronaut)
    assert overlap(face.box, ASTRONAUT_BOX) > 0.8
    assert 0.95 < face.score <= 1
    assert np.abs(np.array(face.landmarks) - ASTRONAUT_LANDMARKS).max() < 4


@pytest.mark.parametrize("degrees", [-40, -20, 20, 40])
def test_tilted_faces_are_found_and_cut_out_upright(
    detector: FaceDetector, astronaut: Image.Image, degrees: float
) -> None:
    photo, matrix = turned(astronaut, degrees)
    (face,) = detector.detect(photo)
    truth = ASTRONAUT_LANDMARKS @ matrix[:, :2].T + matrix[:, 2]
    assert np.linalg.norm(np.array(face.landmarks) - truth, axis=1).max() < 9
    upright, tilted = (
        crop.astype(float) for crop in (crop_face(astronaut, detector.detect(astronaut)[0]), crop_face(photo, face))
    )
    # Shifted by up to three pixels, the middle of one crop is found in the other.
    found = cv2.matchTemplate(tilted.astype(np.float32), upright[3:-3, 3:-3].astype(np.float32), cv2.TM_CCOEFF_NORMED)
    assert found.max() > 0.75


@pytest.mark.parametrize("width", [30, 60, 100, 1600])
def test_finds_faces_that_fill_the_picture(detector: FaceDetector, astronaut: Image.Image, width: int) -> None:
    x, y, w, h = ASTRONAUT_BOX
    tight = astronaut.crop((x, y, x + w, y + h)).resize((width, round(width * h / w)), Image.Resampling.LANCZOS)
    (face,) = detector.detect(tight)
    assert overlap(face.box, (0, 0, *tight.size)) > 0.75


def test_finds_every_face_of_a_group_in_a_photo_of_any_size(detector: FaceDetector, astronaut: Image.Image) -> None:
    # 28 pixels from ear to ear, 35 from hairline to chin, at 640 pixels.
    small = np.asarray(astronaut.resize((160, 160), Image.Resampling.LANCZOS))
    group = Image.fromarray(np.tile(np.concatenate([small, small[:, ::-1]], axis=1), (3, 2, 1)))
    x, y, w, h = np.array(ASTRONAUT_BOX) * 160 / 512
    for scale in (1, 3):
        faces = detector.detect(group.resize((640 * scale, 480 * scale), Image.Resampling.BICUBIC))
        assert len(faces) == 12
        for row in range(3):
            for column in range(4):
                left = column * 160 + (x if column % 2 == 0 else 160 - x - w)
                truth = np.array([left, row * 160 + y, w, h]) * scale
                assert max(overlap(face.box, truth) for face in faces) > 0.6


@pytest.mark.parametrize("light", [0.3, 0.06])
def test_finds_faces_in_dark_photos(detector: FaceDetector, astronaut: Image.Image, light: float) -> None:
    noise = np.random.default_rng(0).normal(0, 2, (512, 512, 3))
    dark = Image.fromarray((np.asarray(astronaut) * light + noise).clip(0, 255).astype(np.uint8))
    (face,) = detector.detect(dark)
    assert overlap(face.box, ASTRONAUT_BOX) > 0.7


def test_the_largest_face_comes_first(detector: FaceDetector, astronaut: Image.Image) -> None:
    photo = Image.new("RGB", (768, 512), (128, 128, 128))
    photo.paste(astronaut.resize((256, 256)), (0, 0))
    photo.paste(astronaut, (256, 0))
    large, small = detector.detect(photo)
    assert overlap(large.box, (256 + 181, 66, 90, 111)) > 0.7
    assert overlap(small.box, (181 / 2, 66 / 2, 90 / 2, 111 / 2)) > 0.7


@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket", "brick", "coins", "page", "hubble_deep_field"])
def test_finds_nobody_in_pictures_without_a_face(detector: FaceDetector, name: str) -> None:
    picture = open_image(getattr(skimage.data, name)())
    assert detector.detect(picture) == []
    assert detector.detect(picture.point(lambda value: value // 5)) == []


@pytest.mark.parametrize("size", [(1, 1), (9, 300), (3000, 2), (320, 240)])
def test_finds_nobody_in_flat_colour_and_noise(detector: FaceDetector, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    for picture in (Image.new("RGB", size), Image.new("RGB", size, (200, 160, 140)), Image.fromarray(noise)):
        assert detector.detect(picture) == []


def test_threads_share_a_detector(detector: FaceDetector, astronaut: Image.Image) -> None:
    photos = [astronaut, ImageOps.mirror(astronaut), astronaut.resize((256, 256)), Image.new("RGB", (300, 200))]
    alone = [detector.detect(photo) for photo in photos]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(detector.detect, photos)) == alone


def test_detect_asks_for_rgb(detector: FaceDetector) -> None:
    with pytest.raises(ValueError, match="mode L; pass it through open_image"):
        detector.detect(Image.new("L", (50, 50)))


# --- cutting faces out ---

MEAN_EYES_AND_MOUTH = np.array([(0.32, 0.39), (0.68, 0.39), (0.34, 0.78), (0.66, 0.78)])


def drawn_face(
    side: float, degrees: float, centre: tuple[float, float], canvas: tuple[int, int]
) -> tuple[Image.Image, Face]:
    """Dark discs at FER2013's mean eyes and mouth, drawn in the frame's own coordinates, and the face they make."""
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    frame = np.insert(MEAN_EYES_AND_MOUTH, 2, (0.5, 0.6), axis=0)
    landmarks = (frame - 0.5) * side @ rotation.T + centre
    pixels = np.full((*canvas[::-1], 3), 220, np.uint8)
    for x, y in landmarks[[0, 1, 3, 4]]:
        # cv2 counts from the middle of a pixel and takes sixteenths of one.
        cv2.circle(
            pixels,
            (round((x - 0.5) * 16), round((y - 0.5) * 16)),
            round(0.04 * side * 16),
            (20, 20, 20),
            -1,
            cv2.LINE_AA,
            4,
        )
    # The frame is 1.07 sqrt(wh) wide and lies 0.005 of that above the box's middle.
    width, height = side / 1.07 * 0.9, side / 1.07 / 0.9
    x, y = np.array(centre) + rotation @ (0, 0.005 * side)
    return Image.fromarray(pixels), Face(
        (x - width / 2, y - height / 2, width, height), 1.0, tuple(map(tuple, landmarks.tolist()))
    )


def disc_places(crop: np.ndarray) -> list[np.ndarray]:
    """Centres of gravity of the four discs, each sought within 7 pixels of its place, in sides of the crop."""
    dark = 220 - crop.astype(float)
    rows, columns = np.mgrid[:48, :48] + 0.5
    places = []
    for x, y in MEAN_EYES_AND_MOUTH * 48:
        near = dark * (np.hypot(columns - x, rows - y) < 7)
        places.append(np.array([(near * columns).sum(), (near * rows).sum()]) / near.sum() / 48)
    return places


@pytest.mark.parametrize("degrees", [-40, -7, 0, 25])
@pytest.mark.parametrize("side", [40, 97, 700])
def test_crop_puts_eyes_and_mouth_where_fer2013_has_them(side: float, degrees: float) -> None:
    image, face = drawn_face(side, degrees, (1.1 * side + 0.3, 0.9 * side + 0.8), (round(2.2 * side), round(2 * side)))
    crop = crop_face(image, face)
    assert crop.shape == (48, 48) and crop.dtype == np.uint8
    for place, expected in zip(disc_places(crop), MEAN_EYES_AND_MOUTH, strict=True):
        assert place == pytest.approx(expected, abs=0.35 / 48)


def test_the_astronaut_is_framed_as_in_fer2013(detector: FaceDetector, astronaut: Image.Image) -> None:
    (face,) = detector.detect(astronaut)
    # Where a landmark measured by eye comes to lie in the crop: found by marking it in the photo.
    blank = crop_face(Image.new("RGB", astronaut.size), face)
    assert blank.max() == 0
    places = []
    for x, y in ASTRONAUT_LANDMARKS:
        marked = np.zeros((512, 512, 3), np.uint8)
        cv2.circle(marked, (round((x - 0.5) * 16), round((y - 0.5) * 16)), 48, (255,) * 3, -1, cv2.LINE_AA, 4)
        crop = crop_face(Image.fromarray(marked), face).astype(float)
        rows, columns = np.mgrid[:48, :48] + 0.5
        places.append(np.array([(crop * columns).sum(), (crop * rows).sum()]) / crop.sum() / 48)
    left_eye, right_eye, _, left_mouth, right_mouth = places
    assert (left_eye + right_eye) / 2 == pytest.approx((0.5, 0.39), abs=0.06)
    assert (left_mouth + right_mouth) / 2 == pytest.approx((0.5, 0.78), abs=0.06)
    assert abs(np.degrees(np.arctan2(*(right_eye - left_eye)[::-1]))) < 4


def test_profile_with_a_false_eye_line_stays_upright() -> None:
    # In a profile the eyes lie a pixel or two apart and their line may point anywhere; eyes to mouth is upright.
    image, face = drawn_face(100, 0, (120, 110), (240, 220))
    profile = ((115.0, 97.0), (118.0, 101.0), (95.0, 120.0), (115.0, 138.0), (118.0, 139.0))
    for place, expected in zip(
        disc_places(crop_face(image, Face(face.box, 1.0, profile))), MEAN_EYES_AND_MOUTH, strict=True
    ):
        assert place == pytest.approx(expected, abs=2 / 48)


def test_large_faces_are_cut_without_aliasing() -> None:
    fine = (np.indices((1500, 1500)).sum(axis=0) // 3 % 2 * 255).astype(np.uint8)
    image = Image.fromarray(np.dstack([fine] * 3))
    _, face = drawn_face(1200, 12, (750, 750), (1500, 1500))
    assert crop_face(image, face).std() < 6
    # The same pattern, sampled without averaging, keeps all its contrast.
    assert fine[150:1350:25, 150:1350:25].std() > 100


def test_beyond_the_photo_its_edge_is_repeated() -> None:
    image = Image.new("RGB", (100, 100), (90, 90, 90))
    _, face = drawn_face(80, 30, (5, 95), (10, 10))
    assert (crop_face(image, face) == 90).all()


def test_crop_whole_takes_the_centre_square() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    assert (crop_whole(open_image(grey)) == grey).all()
    wide = np.zeros((96, 200), np.uint8)
    wide[:, 52:148] = grey.repeat(2, axis=0).repeat(2, axis=1)
    assert (crop_whole(open_image(wide)) == grey).all()
    assert crop_whole(Image.new("RGB", (40000, 3), (9, 9, 9))).tolist() == np.full((48, 48), 9).tolist()


# --- opening pictures ---


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_opens_every_format_by_content_from_path_bytes_and_pil(
    tmp_path: Path, astronaut: Image.Image, form: str
) -> None:
    data = encoded(astronaut.resize((64, 64)), form)
    file = tmp_path / "picture.txt"
    file.write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for source in (file, str(file), data, Image.open(io.BytesIO(data))):
        image = open_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_applies_the_exif_orientation_once(form: str, orientation: int) -> None:
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10).convert("RGB").resize((48, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, form, exif=exif)
    # In place, Pillow's own function also turns a TIFF, which newer versions turn while they load it.
    expected = Image.open(io.BytesIO(data))
    expected.load()
    expected = np.asarray(ImageOps.exif_transpose(expected).convert("RGB"))
    assert expected.shape == ((48, 32, 3) if orientation > 4 else (32, 48, 3))
    once = open_image(data)
    np.testing.assert_array_equal(np.asarray(once), expected)
    np.testing.assert_array_equal(np.asarray(open_image(once)), expected)


def test_a_rotated_phone_photo_gives_the_same_crop(detector: FaceDetector, astronaut: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    phone = open_image(encoded(astronaut.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif))
    (face,), (upright,) = detector.detect(phone), detector.detect(astronaut)
    assert face == upright
    np.testing.assert_array_equal(crop_face(phone, face), crop_face(astronaut, upright))


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_exif_block_does_not_matter(astronaut: Image.Image) -> None:
    small = astronaut.resize((32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    good = exif.tobytes()
    for damaged in (b"Exif\0\0II*\0\xff\xff\xff\xff", good[:14], b"Exif\0\0nonsense"):
        assert open_image(encoded(small, "JPEG", exif=damaged)).size == (32, 32)


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((5, 5)) == (255, 0, 0)


def test_transparency_is_laid_on_mid_grey() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    keyed = Image.new("P", (8, 8), 0)
    keyed.putpalette([10, 20, 30, 40, 50, 60])
    assert open_image(encoded(clear, "PNG")).getpixel((0, 0)) == (128, 128, 128)
    assert open_image(half).getpixel((0, 0)) == pytest.approx((192, 64, 64), abs=1)
    assert open_image(encoded(keyed, "PNG", transparency=0)).getpixel((0, 0)) == (128, 128, 128)
    assert open_image(encoded(keyed, "PNG")).getpixel((0, 0)) == (10, 20, 30)
    assert open_image(clear.convert("LA")).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LA", "PA", "La", "RGBa", "RGBX", "I", "F"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    white = Image.new("RGBA", (6, 6), (255,) * 4)
    if mode == "La":
        image = white.convert("LA").convert("La")
    else:
        image = white.convert(mode) if mode in ("RGBa", "LA", "PA") else white.convert("RGB").convert(mode)
    assert open_image(image).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(form: str) -> None:
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for source in (encoded(Image.fromarray(ramp), form), ramp, ramp[..., None], Image.fromarray(ramp)):
        np.testing.assert_array_equal(np.asarray(open_image(source))[..., 1].ravel(), np.arange(256))
    # Integers and floats of no stated range: white is the smallest usual one that holds them all.
    for values in (
        ramp.astype(np.int32),
        ramp.astype(np.float32),
        ramp.astype(np.float32) / 65535,
        (ramp // 257).astype(np.float32),
    ):
        np.testing.assert_array_equal(np.asarray(open_image(Image.fromarray(values)))[..., 1].ravel(), np.arange(256))


def test_arrays_of_every_accepted_kind(astronaut: Image.Image) -> None:
    colour = np.asarray(astronaut)[:20, :30]
    opaque = np.dstack([colour, np.full((20, 30), 255, np.uint8)])
    for array in (
        colour,
        opaque,
        colour.astype(np.uint16) * 257,
        colour / 255,
        (colour / 255).astype(np.float32),
        colour[:, ::1],
    ):
        np.testing.assert_array_equal(np.asarray(open_image(array)), colour)
    np.testing.assert_array_equal(np.asarray(open_image(colour[..., 0]))[..., 2], colour[..., 0])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.full((4, 4), 200.0), "200.0"),
        (np.full((4, 4), np.nan), "nan"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message + r".*(give|uint8)"):
        open_image(array)


def damaged_files(astronaut: Image.Image) -> Iterator[tuple[str, bytes]]:
    yield "text.jpg", b"This is not a picture at all.\n" * 50
    yield "empty.png", b""
    yield "page.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        data = encoded(astronaut, form)
        yield f"cut.{form.lower()}", data[: len(data) // 2]
        yield f"header.{form.lower()}", data[:20]


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_get_one_sentence_with_their_name(
    tmp_path: Path, astronaut: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, data in damaged_files(astronaut):
        Path(name).write_bytes(data)
        with pytest.raises(ValueError, match=f"^'{name}' is .*; give an intact [^.]*[.]$"):
            open_image(name)
        with pytest.raises(ValueError, match=f"^The picture of {len(data)} bytes is .*; give"):
            open_image(data)


def test_missing_files_folders_and_other_things(tmp_path: Path) -> None:
    for missing in ("nowhere/a.jpg", "", "a\0b.png", "x" * 5000):
        with pytest.raises(FileNotFoundError, match="does not exist; give"):
            open_image(missing)
    with pytest.raises(ValueError, match="is a folder; give"):
        open_image(tmp_path)
    with pytest.raises(ValueError, match="cannot be a int; give"):
        open_image(7)


def png_header(width: int, height: int) -> bytes:
    return encoded(Image.new("1", (width, height)), "PNG")[:60]


def test_too_many_pixels_are_refused_by_the_header() -> None:
    assert 51.3e6 <= MAX_PIXELS < 60e6
    for width, height in ((8000, 6501), (20000, 20000)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            limit = Image.MAX_IMAGE_PIXELS
            with pytest.raises(ValueError, match="more than 52 megapixels; give a smaller copy"):
                open_image(png_header(width, height))
            assert limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match="more than 52 megapixels; give a smaller copy"):
        open_image(np.broadcast_to(np.uint8(0), (8000, 6501)))
    # A 51-megapixel camera: only the missing pixels are complained about.
    with pytest.raises(ValueError, match="cut short"):
        open_image(png_header(8272, 6200))


def test_grey_of_16_bits_is_rounded() -> None:
    levels = np.array([[0, 128, 129, 32768, 65280, 65535]], dtype=np.uint16)
    expected = np.round(levels / 257).astype(int).tolist()
    assert np.asarray(open_image(levels))[..., 0].tolist() == expected
    assert np.asarray(open_image(Image.fromarray(levels)))[..., 0].tolist() == expected


def test_clear_pixels_of_a_palette_become_grey() -> None:
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 4, 8))
    pixels = np.asarray(open_image(picture.quantize(8)))
    assert pixels[0, 0].tolist() == [0, 0, 255]
    assert pixels[0, 7].tolist() == [128, 128, 128]


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="give a picture with at least one"):
        open_image(Image.new("RGB", size))


# --- hostile files and impossible faces; tests/corpus.py has thousands more


def test_small_files_that_cost_pillow_gigabytes_or_minutes_are_cheap() -> None:
    """Each goes through Pillow alone first, in its cheapest form, so that the trap is known to be real."""
    table = greedy_table(65_000)
    for name, data in (
        ("JPEG", encoded(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\0\0" + table)),
        ("PNG", encoded(Image.new("RGB", (8, 8)), "PNG", exif=b"Exif\0\0" + table)),
        ("TIFF", tiff([(40_000 + tag, 7, 2**21, 0) for tag in range(150)], bytes(2**21))),
    ):
        peaks = []
        for read in (lambda data=data: Image.open(io.BytesIO(data)).getexif(), lambda data=data: open_image(data)):
            tracemalloc.start()
            with suppress(ValueError, OSError):
                read()
            peaks.append(tracemalloc.get_traced_memory()[1] / len(data))
            tracemalloc.stop()
        assert peaks[0] > 100 and peaks[1] < 5, f"{name}: {peaks} times its size"


numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)
sides = st.integers(1, 300)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    size=st.tuples(sides, sides),
    box=st.tuples(*[st.one_of(numbers, st.floats(-50, 350))] * 4),
    points=st.lists(st.one_of(numbers, st.floats(-50, 350)), min_size=10, max_size=10),
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_any_box_gives_a_crop_or_one_sentence(size: tuple[int, int], box: tuple, points: list[float]) -> None:
    photo = Image.new("RGB", size, (50, 50, 50))
    landmarks = tuple(zip(points[::2], points[1::2], strict=True))
    x, y, width, height = box
    middle = x + width / 2, y + height / 2
    usual = (
        all(map(math.isfinite, (*box, *points)))
        and min(width, height) > 0
        and 1.07 * math.sqrt(width * height) <= min(size)
        and 0 <= middle[0] <= size[0]
        and 0 <= middle[1] <= size[1]
        and all(math.dist(middle, point) <= math.sqrt(width * height) for point in landmarks)
    )
    sentence = None
    try:
        crop = crop_face(photo, Face(box, 1.0, landmarks))
    except ValueError as error:
        sentence = str(error)
    if sentence is None:
        assert crop.shape == (48, 48) and crop.dtype == np.uint8
        assert (crop == 50).all()
    else:
        assert re.fullmatch(r"The box .* is no face of a photo of \d+ x \d+ pixels; give one that .*\.", sentence)
        assert not usual


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
def test_the_whole_of_any_picture_is_a_crop(size: tuple[int, int]) -> None:
    assert (crop_whole(Image.new("RGB", size, (50, 50, 50))) == 50).all()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_exif_block_has_an_orientation(block: bytes) -> None:
    for start in (b"", b"II*\0\x08\0\0\0", b"Exif\0\0MM\0*\0\0\0\x08"):
        assert 0 <= _orientation(start + block) <= 65_535
