"""From a photo to faces: open any picture upright, find every face, cut it out as FER2013 frames its faces."""

import hashlib
import importlib.util
import io
import math
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cv2
import joblib
import numpy as np
from PIL import Image, JpegImagePlugin

from emotion.labels import IMAGE_SIZE

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MAX_PIXELS: Final = 52_000_000
"""Largest picture that is opened: what cameras sell as 50 megapixels has up to 51.3 million pixels."""
_TOO_LARGE: Final = f"more than {MAX_PIXELS / 1e6:.0f} megapixels; give a smaller copy."
MAX_FILE: Final = 320 * 2**20
"""Largest file that is read, in bytes: as many pixels of 16 bits in three colours, uncompressed."""
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
"""Formats that are opened. Pillow knows more, but some of them start other programs."""
SEARCH_SIDE: Final = 640
"""Longest side of the picture in which faces are searched, in pixels."""
MIN_FACE: Final = 28
"""Smallest face that is searched for, in pixels of the searched picture."""
PYRAMID_STEP: Final = 0.709
"""From one level of the image pyramid to the next: half the area."""
THRESHOLDS: Final = (0.6, 0.7, 0.8)
"""Probabilities above which the three networks keep a box."""
DARK: Final = 64
"""Mean below which a picture is brightened for the search, 0-255."""

BACKGROUND: Final = 128
"""Grey behind transparent pixels: the middle, so that the edge of a cut-out face is a weak one against any skin."""
FRAME_SCALE: Final = 1.07
FRAME_SHIFT: Final = -0.005
"""FER2013's frame around a detector's box: side over sqrt(width * height), and the shift down over that side."""
UPRIGHT: Final = np.array([-0.185 - 0.115j, 0.185 - 0.115j, 0.1j, -0.16 + 0.285j, 0.16 + 0.285j])
"""FER2013's median landmarks as complex numbers x + iy, in sides of its frame from the frame's centre."""

TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation (CIPA DC-008, tag 0x0112)."""
ORIENTATION: Final = 0x0112

# What a reader may do before the first pixel and after it, and how often a JPEG may go over its pixels. Photos stay far
# below: they have some ten parts beside the picture, about 5 MB with a depth map in it, and ten passes (CMYK: thirty).
_READS_TO_OPEN: Final = 10_000
_BYTES_TO_OPEN: Final = 16 * 2**20
_TIFF_BYTES_TO_OPEN: Final = 2 * 2**20
_READS_TO_LOAD: Final = 200_000
_MAX_PARTS: Final = 1000
_MAX_PASSED_PIXELS: Final = 64 * MAX_PIXELS
# What starts a part of a JPEG: neither an escaped 0xff, nor padding, nor a restart within a pass (ITU-T T.81, B.1.1).
_JPEG_PART: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def open_image(source: str | Path | bytes | Image.Image | np.ndarray) -> Image.Image:
    """Open a picture and turn it upright, whatever its colour mode.

    The content and not the name decides what a file is. The first frame of an animation is taken, the EXIF
    orientation is applied (an unreadable one is ignored), transparency is laid on mid-grey, and 16-bit and
    floating-point grey is scaled to 8 bits rather than clipped.

    Args:
        source: path of a PNG, JPEG, WebP, GIF, TIFF or BMP file, the bytes of one, a PIL image, or an array
            (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of uint8, uint16 or float in [0, 1].

    Returns:
        An 8-bit image in mode "RGB"; the given object itself if it is one already and upright.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the source is not a picture, is damaged, or has more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source))
    if isinstance(source, Image.Image):
        return _decode(source, "The PIL image")
    if isinstance(source, bytes):
        return _read(source, f"The picture of {len(source)} bytes")
    if not isinstance(source, (str, Path)):
        raise ValueError(
            f"A picture cannot be a {type(source).__name__}; give a path, bytes, PIL image or NumPy array."
        )
    name = f"'{source}'"
    if os.path.isdir(source):
        raise ValueError(f"{name} is a folder; give the path of one picture.")
    if not os.path.isfile(source):
        raise FileNotFoundError(f"{name} does not exist; give the path of a picture.")
    if not os.access(source, os.R_OK):
        raise ValueError(f"{name} may not be read; change its permissions or give another picture.")
    size = os.path.getsize(source)
    if size > MAX_FILE:
        raise ValueError(f"{name} has {size:,} bytes, more than {MAX_FILE:,}; give a smaller copy.")
    return _read(Path(source).read_bytes(), name)


class _Overdone(ValueError):
    """A file that takes more work than any honest one of its size."""


class _Metered(io.BytesIO):
    """A file in memory that may be read only so often.

    Pillow's readers are quick with photos, but a small file can be made that costs some of them minutes or gigabytes:
    millions of empty parts, a comment in tiny pieces, a table whose every entry names the same megabyte.
    """

    def allow(self, reads: int, size: int) -> None:
        self._reads, self._bytes = reads, size

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        # WebP's reader takes all at once, and looks at it in C.
        if size is not None and size >= 0:
            self._reads -= 1
            self._bytes -= len(data)
            if self._reads < 0 or self._bytes < 0:
                raise _Overdone
        return data


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG whose EXIF and MPF blocks Pillow leaves alone: it would read either with a reader that knows no limit."""

    def _read_dpi_from_exif(self) -> None:
        pass


def _read(data: bytes, name: str) -> Image.Image:
    stream = _Metered(data)
    stream.allow(_READS_TO_OPEN, _TIFF_BYTES_TO_OPEN if data[:2] in (b"II", b"MM") else _BYTES_TO_OPEN)
    try:
        if data.startswith(b"\xff\xd8\xff"):
            image: Image.Image = _Jpeg(stream)
            if _passed_pixels(data, stream.tell(), image) > _MAX_PASSED_PIXELS:
                raise _Overdone
        else:
            image = Image.open(stream, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{name} has {_TOO_LARGE}") from None
    except _Overdone:
        raise ValueError(_overdone(name)) from None
    except Exception:  # Pillow's readers raise anything on hostile bytes.
        raise ValueError(
            f"{name} is not a picture; give an intact {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        ) from None
    # A TIFF's tables are read again, and every pixel once.
    stream.allow(_READS_TO_LOAD, 2 * len(data) + _TIFF_BYTES_TO_OPEN)
    return _decode(image, name)


def _overdone(name: str) -> str:
    return f"{name} holds far more parts or data beside its pixels than a photo does; save it anew and give that copy."


def _passed_pixels(data: bytes, start: int, image: Image.Image) -> int:
    """Pixels of a JPEG times the passes over them; the first one's head ends at `start`.

    A pass can be a few bytes long, and costs as much as one of megabytes.
    """
    passes = 1
    for _ in range(_MAX_PARTS):
        part = _JPEG_PART.search(data, start)
        if part is None or part[0] == b"\xff\xd9":
            return passes * min(image.width * image.height, MAX_PIXELS)
        passes += part[0] == b"\xff\xda"
        start = part.end() + int.from_bytes(data[part.end() : part.end() + 2], "big")
    raise _Overdone


def _decode(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"{name} has {image.width} x {image.height} pixels; give a picture with at least one.")
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{name} has {image.width} x {image.height} pixels, {_TOO_LARGE}")
    try:
        image.load()
        turn = TURNS.get(_orientation(image.info.get("exif", b"")))
        upright = _to_rgb(image if turn is None else image.transpose(turn))
    except _Overdone:
        raise ValueError(_overdone(name)) from None
    except Exception:  # As above.
        raise ValueError(
            f"{name} is damaged or cut short, or in an unknown colour space; give an intact copy."
        ) from None
    if upright is not image:
        # What has been turned must not be turned again by whoever reads the orientation next.
        upright.info.clear()
    return upright


def _orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, 1 for none. Pillow's own reader copies whatever a damaged one points at.

    A TIFF has no such block here: Pillow turns it while it loads it.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[exif[:4]]
        (start,) = struct.unpack_from(f"{order}L", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHLH", exif, entry)
            if tag == ORIENTATION:
                return value
    except (KeyError, struct.error):  # A damaged EXIF block is no reason to refuse the picture.
        pass
    return 1


def _from_array(array: np.ndarray) -> Image.Image:
    accepted = "give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16 or float in [0, 1]."
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)) or array.size == 0:
        raise ValueError(f"The array has shape {array.shape}; {accepted}")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ValueError(f"The array has shape {array.shape}, {_TOO_LARGE}")
    if array.dtype == np.uint16:
        array = _to_8_bit(array)
    elif np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"The {array.dtype} array reaches from {array.min()} to {array.max()}; {accepted}")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"The array is of {array.dtype}; {accepted}")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _to_8_bit(array: np.ndarray) -> np.ndarray:
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    elif image.mode in ("I", "F"):
        array = np.nan_to_num(np.asarray(image, dtype=np.float32))
        # These modes name no white; files hold fractions, 8-bit or 16-bit values in them.
        peak = float(array.max())
        white = next((white for white in (1, 255, 65535) if peak <= white and (white > 1 or image.mode == "F")), peak)
        image = Image.fromarray((array.clip(0) * (255 / white)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        colour = image.convert("RGBA")
        image = Image.new("RGB", image.size, (BACKGROUND,) * 3)
        image.paste(colour, mask=colour)
    return image.convert("RGB")


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Face:
    """One face in a photo.

    Attributes:
        box: x, y, width and height in pixels of the upright photo; may reach beyond its edges.
        score: the detector's probability that this is a face, in [0, 1].
        landmarks: (x, y) of the left eye, right eye, nose, left and right corner of the mouth, in pixels of the
            upright photo; left and right as the viewer sees them.
    """

    box: Box
    score: float
    landmarks: tuple[tuple[float, float], ...]


_WEIGHTS: Final = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
"""SHA-256 of the files of the package `mtcnn` 1.0.0, by the name of the network."""


class FaceDetector:
    """Multi-task cascaded convolutional networks (Zhang et al. 2016, arXiv 1604.02878) in ONNX Runtime.

    The weights are those that the package `mtcnn` carries (MIT licence); its code and TensorFlow are not imported.
    A detector keeps no state between pictures and may be used from several threads.

    Raises:
        FileNotFoundError: if the package `mtcnn` 1.0.0 is not installed.
        ValueError: if its weights are not those of that version.
    """

    def __init__(self) -> None:
        package = importlib.util.find_spec("mtcnn")
        if package is None or package.origin is None:
            raise FileNotFoundError("The face detector's weights are missing; run 'pip install mtcnn==1.0.0'.")
        folder = Path(package.origin).parent / "assets" / "weights"
        arrays = [_weights(folder / f"{name}.lz4", digest) for name, digest in _WEIGHTS.items()]
        self.proposal = _network([(3, 2), (3, 0), (3, 0)], ["offsets"], arrays[0])
        self.refinement = _network([(3, 3), (3, 3), (2, 0), (3, 0)], ["offsets"], arrays[1])
        self.output = _network([(3, 3), (3, 3), (3, 2), (2, 0), (3, 0)], ["offsets", "landmarks"], arrays[2])

    def detect(self, image: Image.Image, near: Sequence[Box] | None = None) -> list[Face]:
        """Find the faces in an upright 8-bit RGB photo (see `open_image`), the largest box first.

        The photo is searched at `SEARCH_SIDE` pixels on its longest side, or its own size if that is smaller;
        a dark one is brightened for the search.

        Args:
            image: the photo.
            near: boxes such as `Face.box` from a moment ago, in pixels of the photo. Only faces that have not moved
                further than a quarter of their side from one of them are found, ten times as fast as all.

        Raises:
            ValueError: if the image is not in mode "RGB".
        """
        if image.mode != "RGB":
            raise ValueError(f"The image is in mode {image.mode}; pass it through open_image first.")
        scale = min(1.0, SEARCH_SIDE / max(image.size))
        size = tuple(max(1, round(side * scale)) for side in image.size)
        pixels = _brighten(np.array(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)))

        halves = _halve(pixels)
        to_photo = np.array(image.size) / size
        if near is None:
            boxes = self._propose(halves)
            boxes, scores, _ = _refine(self.refinement, halves, boxes, 24, THRESHOLDS[1])
            boxes = boxes[_suppress(boxes, scores, 0.7)]
        else:
            corners = [(x, y, x + width, y + height) for x, y, width, height in near]
            boxes = np.reshape(corners, (-1, 4)) / np.tile(to_photo, 2)
        boxes, scores, points = _refine(self.output, halves, boxes, 48, THRESHOLDS[2])
        kept = _suppress_inner(boxes, scores, 0.7)

        faces = []
        for index in kept:
            (x, y), (right, bottom) = (boxes[index].reshape(2, 2) * to_photo).tolist()
            landmarks = (points[index].reshape(2, 5).T * to_photo).tolist()
            faces.append(Face((x, y, right - x, bottom - y), float(scores[index]), tuple(map(tuple, landmarks))))
        return sorted(faces, key=lambda face: face.box[2] * face.box[3], reverse=True)

    def _propose(self, halves: Sequence[np.ndarray]) -> np.ndarray:
        """Slide the first network over an image pyramid; boxes (N, 4) as x1, y1, x2, y2."""
        height, width = halves[0].shape[:2]
        found, found_scores = [np.empty((0, 4))], [np.empty(0)]
        scale = 12 / MIN_FACE
        while min(height, width) * scale >= 12 * PYRAMID_STEP:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            source = _twice_as_large(halves, scale)
            # As wide as a triangle that reaches over two pixels of the level: recall depends on that.
            smooth = cv2.GaussianBlur(source, (5, 5), source.shape[1] / size[0] / math.sqrt(6))
            level = cv2.resize(smooth, size, interpolation=cv2.INTER_LINEAR)
            # Half a window of grey around the picture, so that faces which its edge cuts are found too.
            framed = cv2.copyMakeBorder(level, *(6,) * 4, cv2.BORDER_CONSTANT, value=(BACKGROUND,) * 3)
            offsets, probability = self.proposal.run(None, {"pictures": framed[None]})
            rows, columns = np.nonzero(probability[0, 0] > THRESHOLDS[0])
            corners = np.stack([columns, rows], axis=1) * 2.0 - 6
            windows = np.concatenate([corners, corners + 12], axis=1) + 12 * offsets[0][:, rows, columns].T
            boxes = windows * ((width / size[0], height / size[1]) * 2)
            scores = probability[0, 0, rows, columns]
            kept = _suppress(boxes, scores, 0.5)
            found.append(boxes[kept])
            found_scores.append(scores[kept])
            scale *= PYRAMID_STEP
        boxes = np.concatenate(found)
        return boxes[_suppress(boxes, np.concatenate(found_scores), 0.7)]


def _weights(file: Path, digest: str) -> list[np.ndarray]:
    content = file.read_bytes()
    # They are pickles, which may run anything: only those that are known are opened.
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{file} is not of mtcnn 1.0.0; run 'pip install --force-reinstall mtcnn==1.0.0'.")
    return joblib.load(io.BytesIO(content))


def _network(
    layers: Sequence[tuple[int, int]], heads: Sequence[str], arrays: Sequence[np.ndarray]
) -> "InferenceSession":
    """One MTCNN network, fully convolutional: its dense layers are convolutions that cover the whole map.

    It takes `pictures`, uint8 RGB (N, H, W, 3), and gives what its heads give, float32 (N, outputs, h, w), and the
    probability of a face (N, 1, h, w).

    Args:
        layers: kernel and pooling (0 for none) of each layer.
        heads: names of the heads before the probability's.
        arrays: the Keras weights in the order of the layers, then the heads.
    """
    # Here and not above: whoever only cuts out or opens pictures need not wait for them.
    from onnx import TensorProto

    from emotion.runtime import Graph, session

    graph, weights = Graph("pictures", np.uint8, ["N", "H", "W", 3]), iter(arrays)
    graph.add("Cast", to=TensorProto.FLOAT)
    graph.add("Transpose", perm=[0, 3, 1, 2])
    for index, (side, pool) in enumerate(layers):
        kernel, bias, slope = next(weights), next(weights), next(weights)
        if kernel.ndim == 2:
            # Dense weights run over width, height, channels: the networks come from column-major Matlab.
            kernel = kernel.reshape(side, side, -1, len(bias)).swapaxes(0, 1)
        if index == 0:
            # The networks have been trained on (pixel - 127.5) / 128.
            bias, kernel = bias - 127.5 / 128 * kernel.sum(axis=(0, 1, 2)), kernel / 128
        values = graph.add("Conv", np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)), bias)
        # PReLU as x + (slope - 1) min(x, 0): ONNX Runtime's own takes several times as long.
        graph.add("Min", np.zeros((), np.float32), inputs=[values])
        scaled = graph.add("Mul", slope.reshape(-1, 1, 1) - 1)
        graph.add("Add", inputs=[values, scaled])
        if pool:
            # Rounding up is what Keras calls 'same' here; where it says 'valid' the sizes divide.
            graph.add("MaxPool", kernel_shape=[pool, pool], strides=[2, 2], ceil_mode=1)
    features, outputs = graph.last, {}
    for head in heads:
        kernel, bias = next(weights), next(weights)
        graph.add("Conv", kernel.reshape(-1, len(bias), 1, 1).swapaxes(0, 1).copy(), bias, inputs=[features], name=head)
        outputs[head] = ["N", len(bias), "h", "w"]
    # A softmax of two is the sigmoid of their difference.
    kernel, bias = (array.reshape(-1, 2) @ np.array([-1, 1], np.float32) for array in weights)
    graph.add("Conv", kernel.reshape(1, -1, 1, 1), bias, inputs=[features])
    graph.add("Sigmoid", name="probability")
    return session(graph.give(**outputs, probability=["N", 1, "h", "w"]))


def _brighten(pixels: np.ndarray) -> np.ndarray:
    """Stretch a dark picture (uint8) to white and lift its shadows: the networks have hardly seen dark faces."""
    if pixels.mean() >= DARK:
        return pixels
    # Limits keep the noise of a nearly black picture from becoming one of faces.
    levels = (np.arange(256) / max(16, np.percentile(pixels, 99.5))).clip(0, 1)
    mean = levels[pixels].mean().clip(0.01, 0.35)
    gamma = max(0.35, math.log(0.35) / math.log(mean))
    return cv2.LUT(pixels, (255 * levels**gamma).round().astype(np.uint8))


def _halve(pixels: np.ndarray) -> list[np.ndarray]:
    """`pixels` (H, W, 3), half of them, a quarter and so on: averaging down from a smaller one is quicker."""
    halves = [pixels]
    while min(halves[-1].shape[:2]) > 24:
        height, width = halves[-1].shape[:2]
        halves.append(cv2.resize(halves[-1], (round(width / 2), round(height / 2)), interpolation=cv2.INTER_AREA))
    return halves


def _twice_as_large(halves: Sequence[np.ndarray], scale: float) -> np.ndarray:
    """The smallest of the pictures, if there is one, that is at least twice as large as `scale` times the first."""
    return halves[min(len(halves) - 1, max(0, math.floor(-math.log2(2 * scale))))]


def _refine(
    net: "InferenceSession", halves: Sequence[np.ndarray], boxes: np.ndarray, size: int, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run a network on square patches around `boxes` (N, 4), resized to `size`.

    Each patch is judged as it is and mirrored, and the two answers are averaged: what only resembles a face seldom
    does so in the mirror too.

    Returns corrected boxes (M, 4), probabilities (M,) and landmarks (M, 10; five x, then five y) of the M faces
    above the threshold.
    """
    if not len(boxes):
        return boxes, np.empty(0), np.empty((0, 10))
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    corners = (boxes[:, :2] + boxes[:, 2:] - sides[:, None]) / 2
    patches = np.stack([_patch(halves, *box, size) for box in zip(corners, sides, strict=True)])
    plain = _run(net, patches)
    # With less than this, even certainty in the mirror would not lift the average above the threshold.
    promising = np.flatnonzero(plain[-1][:, 0] > 2 * threshold - 1)
    if not len(promising):
        return boxes[:0], np.empty(0), np.empty((0, 10))
    mirrored = _run(net, patches[promising, :, ::-1])
    corners, sides = corners[promising], sides[promising, None]

    # Mirrored, x1 and x2 change places and sign, left and right landmarks change places.
    offsets = (plain[0][promising] + mirrored[0][:, [2, 1, 0, 3]] * (-1, 1, -1, 1)) / 2
    boxes = np.concatenate([corners, corners + sides], axis=1) + sides * offsets
    points = np.empty((len(boxes), 10))
    if len(plain) > 2:
        mirrored[1][:, :5] = 1 - mirrored[1][:, :5]
        landmarks = (plain[1][promising] + mirrored[1][:, [1, 0, 2, 4, 3, 6, 5, 7, 9, 8]]) / 2
        points = corners.repeat(5, axis=1) + sides * landmarks
    probability = (plain[-1][promising, 0] + mirrored[-1][:, 0]) / 2
    kept = (probability > threshold) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    return boxes[kept], probability[kept], points[kept]


def _run(net: "InferenceSession", patches: np.ndarray) -> list[np.ndarray]:
    """Outputs (N, K) for patches (N, size, size, 3)."""
    outputs = net.run(None, {"pictures": np.ascontiguousarray(patches)})
    return [output[:, :, 0, 0].astype(np.float64) for output in outputs]


def _patch(halves: Sequence[np.ndarray], corner: np.ndarray, side: float, size: int) -> np.ndarray:
    """The square with this upper left corner, resized to `size`."""
    pixels = _twice_as_large(halves, size / side)
    scale = np.array(pixels.shape[1::-1]) / halves[0].shape[1::-1]
    centre = (corner + side / 2) * scale
    return _cut(pixels, complex(*centre), side * math.sqrt(scale.prod()), size, cv2.BORDER_CONSTANT)


def _suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression by intersection over union; indices of the boxes (N, 4) kept, best score first."""
    corners_and_sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return np.array(cv2.dnn.NMSBoxes(corners_and_sides, scores, 0.0, threshold), dtype=int)


def _suppress_inner(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """As `_suppress`, but a box within another one is the same face: the overlap counts against the smaller one."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        start = np.maximum(boxes[index, :2], boxes[kept, :2])
        end = np.minimum(boxes[index, 2:], boxes[kept, 2:])
        common = (end - start).clip(0).prod(axis=1)
        if (common <= threshold * np.minimum(areas[index], areas[kept])).all():
            kept.append(index)
    return kept


def _cut(pixels: np.ndarray, centre: complex, side: float, size: int, border: int, turn: complex = 1) -> np.ndarray:
    """Cut a square out of `pixels` (H, W) or (H, W, 3) and resize it to `size`, with one interpolation.

    The square is sampled at least as finely as the picture, then averaged down, which is what keeps it free of
    aliasing. `centre` is x + iy in pixels and `turn`, of length 1, the direction of the square's top edge.
    """
    fine = size * max(1, math.ceil(side / size))
    step = turn * side / fine
    corner = centre - (0.5 + 0.5j) + step * (0.5 - fine / 2) * (1 + 1j)
    matrix = np.array([[step.real, -step.imag, corner.real], [step.imag, step.real, corner.imag]])
    square = cv2.warpAffine(
        pixels,
        matrix,
        (fine, fine),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=border,
        borderValue=(BACKGROUND,) * 3,
    )
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)


def _cut_grey(image: Image.Image, centre: complex, side: float, turn: complex = 1) -> np.ndarray:
    # Half the diagonal reaches every corner of a turned square; two pixels more feed the interpolation. OpenCV
    # takes no picture wider than 32767 pixels, and there is no need to make a large photo grey for one face.
    reach = side * math.sqrt(0.5) + 2
    # One pixel of the photo at least: the edge that is repeated.
    left, top = (
        min(max(0, math.floor(at - reach)), length - 1)
        for at, length in zip((centre.real, centre.imag), image.size, strict=True)
    )
    right, bottom = math.ceil(centre.real + reach), math.ceil(centre.imag + reach)
    region = image.crop((left, top, max(left + 1, min(image.width, right)), max(top + 1, min(image.height, bottom))))
    pixels = np.asarray(region.convert("L"))
    return _cut(pixels, centre - complex(left, top), side, IMAGE_SIZE, cv2.BORDER_REPLICATE, turn)


def crop_face(image: Image.Image, face: Face) -> np.ndarray:
    """Cut a face out of the photo in which it was found, framed and upright as in FER2013.

    The frame is a square of side 1.07 sqrt(width * height) of the box. It is turned by the angle that brings the
    landmarks closest to those of an upright face (Umeyama 1991): the eyes' line counts as much as its length, so
    in a half profile the line from the eyes to the mouth decides. Beyond the photo its edge is repeated.

    Args:
        image: the upright photo, mode "RGB" or "L".
        face: a face that `FaceDetector.detect` found in it.

    Returns:
        Grey uint8 (48, 48), 0-255.

    Raises:
        ValueError: if the face cannot be one of this photo: its box has no area or more than three times the photo's
            shorter side, its middle lies outside by more than its size, its landmarks are ten times its size away, or
            a number is not finite.
    """
    x, y, width, height = face.box
    side = FRAME_SCALE * math.sqrt(width * height) if width > 0 < height else 0
    centre = complex(x + width / 2, y + height / 2)
    points = np.array(face.landmarks) @ (1, 1j)
    beyond = max(abs(2 * centre.real - image.width) - image.width, abs(2 * centre.imag - image.height) - image.height)
    if not (0 < side <= 3 * min(image.size) and beyond <= 2 * side and np.abs(points - centre).max() <= 10 * side):
        raise ValueError(
            f"The box {face.box} with its landmarks is no face of a photo of {image.width} x {image.height} pixels; "
            "give one that FaceDetector.detect found in it."
        )
    turn = complex(np.vdot(UPRIGHT - UPRIGHT.mean(), points))
    turn = turn / abs(turn) if turn else 1
    centre += 1j * turn * FRAME_SHIFT * side
    return _cut_grey(image, centre, side, turn)


def crop_whole(image: Image.Image) -> np.ndarray:
    """Take the whole picture for a face: its centre square as grey uint8 (48, 48), 0-255.

    A grey picture of 48x48 pixels comes back as it is.
    """
    return _cut_grey(image, complex(*image.size) / 2, min(image.size))
