"""Example pictures without a real person: per emotion, the mean of many training faces on which the voters agree."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from emotion.checkpoint import atomic_write
from emotion.data import load_dataset
from emotion.labels import FERPLUS_LABELS, IMAGE_SIZE

FACES: Final = 40
"""Faces in a mean: enough that no single one shows."""
UNANIMOUS: Final = 3 * FACES
"""Faces on which all voters agree that are enough to choose from; where there are fewer, a majority will do."""
ALIKE: Final = 0.65
"""Correlation from which two faces count as one: FER2013 holds many copies of a picture, with other frames and prints.
Of two faces of happy or contempt, about one pair in a hundred reaches it by chance."""

MOVES: Final = [
    np.array([[flip * scale, 0, 23.5 - flip * scale * 23.5 + dx], [0, scale, 23.5 - scale * 23.5 + dy]])
    for flip in (1, -1)
    for scale in (0.85, 0.92, 1.0, 1.08, 1.17)
    for dy in range(-2, 3)
    for dx in range(-2, 3)
]
"""How a face may be laid on the others: mirrored or not, scaled about the centre and shifted, as affine maps (2, 3)."""
ROUNDS: Final = 30
"""Faces are chosen anew at most this often; the choice settles after about ten rounds."""

TOO_FEW: Final = (
    f"only {{}} of {{}} faces differ; give at least {FACES} different ones, so that their mean shows nobody."
)

_y, _x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
WINDOW: Final = np.exp(-(((_x - 23.5) / 14) ** 4) - ((_y - 25) / 19) ** 4).astype(np.float32)
"""Weight of each pixel, 1 on the face and almost 0 beyond it, so that hair and background don't choose the faces."""


@dataclass(frozen=True)
class Composite:
    """The mean of many faces, and how near it comes to single ones.

    Attributes:
        image: grey uint8 (48, 48), contrast stretched to 0-255.
        members: which faces are in it, int64 (40,), the most alike first.
        nearest_member: the highest correlation of its pixels with a face in it, in [-1, 1].
        nearest_other: the same with a face not in it; -1 if there is none.
    """

    image: np.ndarray = field(repr=False)
    members: np.ndarray = field(repr=False)
    nearest_member: float
    nearest_other: float


def compose(faces: np.ndarray) -> Composite:
    """The mean of the 40 different faces that are most alike.

    Starting from the mean of all, the faces that correlate best with it are chosen and averaged, until the choice
    stays the same: k-means (Lloyd 1982, doi.org/10.1109/TIT.1982.1056489) with one trimmed cluster. Faces are compared
    by their local contrast, which ignores the lighting, and each is first laid on the mean as well as `MOVES` allow.
    Of copies of a face, the first in this order is taken. All count the same, with equal brightness and contrast.

    Args:
        faces: grey uint8 (N, 48, 48), of one expression.

    Raises:
        ValueError: if fewer than 40 faces differ from each other.
    """
    if len(faces) < FACES:
        raise ValueError(TOO_FEW.format(len(faces), len(faces)))
    features = _local_contrast(faces)
    mean, choice = features.mean(axis=0), np.empty(0)
    for _ in range(ROUNDS):
        # Moving the mean the other way compares it with every moved face in one product.
        means = np.stack([_moved(mean * WINDOW, move, cv2.WARP_INVERSE_MAP) for move in MOVES])
        scores = features.reshape(len(faces), -1) @ _unit(means).T
        moves = scores.argmax(axis=1)
        laid = np.stack([_moved(face, MOVES[move]) for face, move in zip(features, moves, strict=True)])
        members = _different(laid * WINDOW, np.argsort(-scores.max(axis=1), kind="stable"))
        mean, previous = laid[members].mean(axis=0), choice
        choice = np.stack([members, moves[members]])
        if np.array_equal(choice, previous):
            break
    pixels = np.stack([_moved(face, MOVES[move]) for face, move in zip(faces.astype(np.float32), moves, strict=True)])
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    pixels /= np.maximum(pixels.std(axis=(1, 2), keepdims=True), 1e-6)
    mean = pixels[members].mean(axis=0)
    correlations = (pixels * mean).mean(axis=(1, 2)) / mean.std()
    low, high = np.percentile(mean, (0.5, 99.5))
    return Composite(
        image=((mean - low) / (high - low) * 255).round().clip(0, 255).astype(np.uint8),
        members=members,
        nearest_member=float(correlations[members].max()),
        nearest_other=float(np.delete(correlations, members).max(initial=-1.0)),
    )


def write_examples(data: str | Path, votes: str | Path, folder: str | Path) -> dict[str, tuple[Composite, float]]:
    """Write `angry.png` and so on, a composite of 48x48 pixels for each of FER+'s eight emotions.

    The faces to choose from are those of the Training split whose FER+ votes for an emotion all agree; where these are
    fewer than 120, all that have more than half of these votes. Each file says in its `Description` what it is.

    Args:
        data: FER2013 CSV.
        votes: FER+'s `fer2013new.csv`.
        folder: created if missing.

    Returns:
        For each emotion the composite, and the lowest share of votes among its faces.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if one is damaged or an emotion has fewer than 40 different faces; nothing is written then.
    """
    dataset = load_dataset(data, "Training", "ferplus", votes, soft_targets=True)
    examples = {}
    for column, label in enumerate(FERPLUS_LABELS):
        shares = dataset.targets[:, column].numpy()
        agree = shares == 1 if (shares == 1).sum() >= UNANIMOUS else shares > 0.5
        faces, shares = dataset.images.numpy()[agree], shares[agree]
        try:
            composite = compose(faces)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error
        examples[label] = composite, float(shares[composite.members].min())
    for label, (composite, share) in examples.items():
        text = PngInfo()
        text.add_text(
            "Description",
            f"No real person: the mean of {len(composite.members)} different faces of FER2013's Training split, each "
            f"called {label} by {'all' if share == 1 else f'at least {share:.0%}'} of its FER+ votes for an emotion.",
        )
        with atomic_write(Path(folder) / f"{label}.png") as temporary:
            Image.fromarray(composite.image).save(temporary, "PNG", pnginfo=text)
    return examples


def _local_contrast(faces: np.ndarray) -> np.ndarray:
    """Detail relative to the contrast around it, float32 (N, 48, 48), each face of norm 1."""
    features = []
    for face in faces.astype(np.float32):
        detail = face - cv2.GaussianBlur(face, (0, 0), 4)
        # Four grey levels keep the noise of flat areas small.
        detail /= np.sqrt(cv2.GaussianBlur(detail**2, (0, 0), 6)) + 4
        features.append(detail / max(np.linalg.norm(detail), 1e-6))
    return np.stack(features)


def _different(features: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The first `FACES` indices of `order` whose features (N, 48, 48) are not alike."""
    flat = _unit(features)
    members: list[int] = []
    for index in order.tolist():
        if len(members) < FACES and not (flat[members] @ flat[index] > ALIKE).any():
            members.append(index)
    if len(members) < FACES:
        raise ValueError(TOO_FEW.format(len(members), len(features)))
    return np.array(members)


def _moved(picture: np.ndarray, move: np.ndarray, flags: int = 0) -> np.ndarray:
    return cv2.warpAffine(picture, move, picture.shape, flags=cv2.INTER_LINEAR | flags, borderMode=cv2.BORDER_REPLICATE)


def _unit(pictures: np.ndarray) -> np.ndarray:
    """Pictures (N, 48, 48) to vectors (N, 2304) of norm 1."""
    flat = pictures.reshape(len(pictures), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
