"""Readers: Kaggle's FER2013 CSVs, class folders and FER+ votes become one in-memory set of 48x48 grey faces.

Labels are a distribution over classes everywhere: one-hot for FER2013's own labels and for class folders, shares of
the votes for FER+, so that training and evaluation need one path only.
"""

import hashlib
import lzma
import os
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from emotion.faces import crop_whole, open_image
from emotion.labels import FER2013_LABELS, FERPLUS_COLUMNS, FERPLUS_LABELS, IMAGE_SIZE, LABEL_SETS, OWN_LABELS

PIXELS: Final = IMAGE_SIZE * IMAGE_SIZE
SPLIT_NAMES: Final = (
    ("train", "training"),
    ("validation", "val", "valid", "publictest"),
    ("test", "testing", "privatetest"),
)
"""Names that mean the same split; the first of each row is the generic word."""
CLASS_FOLDERS: Final = {
    **{name: name for name in FERPLUS_LABELS},
    **FERPLUS_COLUMNS,
    # The folder names of the other FER2013 export in wide use (github.com/atulapra/Emotion-detection).
    "disgusted": "disgust",
    "fearful": "fear",
    "surprised": "surprise",
}
"""Lower-case folder names that are read as a standard class."""
IMAGE_SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
IMAGE_FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What those files may hold, whatever their names. Pillow knows more, but some formats start other programs."""
SAME_PHOTO: Final = 0.85
"""Correlation from which on `photos_not_in` calls two faces one photo; chosen by looking at pairs of FER2013."""
MAX_VOTES: Final = 1_000_000
"""Of one face for one emotion; FER+ has ten voters. Doubles and integers hold sums of such numbers exactly."""
READ_ERRORS: Final = (OSError, ValueError, KeyError, EOFError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)
"""What a damaged CSV, archive or cache file raises on reading."""


@dataclass(frozen=True, eq=False)
class FaceDataset(Dataset[tuple[Tensor, Tensor]]):
    """Faces and their labels, held in memory.

    Args:
        images: uint8 (N, 48, 48), grey, 0 to 255.
        targets: float32 (N, C), each row a distribution over the classes (non-negative, sums to 1).
        labels: the C class names, in the order of the columns of `targets`.

    Raises:
        ValueError: if a shape or dtype differs from these or a row of `targets` is no distribution.
    """

    images: Tensor
    targets: Tensor
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(
                f"images are {self.images.dtype} {tuple(self.images.shape)}; give torch.uint8 (N, 48, 48) in 0 to 255."
            )
        if self.targets.dtype != torch.float32 or self.targets.shape != (len(self.images), len(self.labels)):
            raise ValueError(
                f"targets are {self.targets.dtype} {tuple(self.targets.shape)}; "
                f"give torch.float32 {(len(self.images), len(self.labels))}, a distribution over the labels per image."
            )
        bad = (self.targets < 0).any(1) | ~((self.targets.sum(1) - 1).abs() < 1e-4)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(f"targets[{row}] is {self.targets[row].tolist()}; give non-negative shares that sum to 1.")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 (1, 48, 48) and its target float32 (C,)."""
        return self.images[index][None], self.targets[index]

    @property
    def class_indices(self) -> Tensor:
        """The most probable class of each image, int64 (N,)."""
        return self.targets.argmax(dim=1)

    @property
    def label_set(self) -> str:
        """Whose labels these are: a key of `LABEL_SETS`, or "own"."""
        return next((name for name, labels in LABEL_SETS.items() if labels == tuple(self.labels)), OWN_LABELS)

    def subset(self, indices: Tensor | Sequence[int]) -> "FaceDataset":
        """The rows at `indices` (int64 or bool), in that order, as a new data set."""
        index = torch.as_tensor(indices)
        if index.dtype != torch.bool:
            index = index.long()
        return FaceDataset(self.images[index], self.targets[index], self.labels)


def split_kind(split: str) -> str | None:
    """What a split is for, "train", "validation" or "test", if its name says so; "PublicTest" is for validation."""
    return next((names[0] for names in SPLIT_NAMES if split.lower() in names), None)


def load_dataset(
    path: str | Path,
    split: str,
    labels: str = "fer2013",
    votes: str | Path | None = None,
    soft_targets: bool = False,
) -> FaceDataset:
    """Read one split of a CSV file or of a folder of class folders.

    A CSV (also `.xz`, `.gz`, `.bz2`, `.zip`) is Kaggle's `fer2013.csv` or `icml_face_data.csv`: the columns
    `emotion` (0 to 6), `pixels` (2,304 grey values) and `Usage` (the split), in any order, spaces around names
    ignored. The parsed file is kept in `$EMOTION_CACHE` (default `~/.cache/emotion`) under a hash of its content;
    delete that folder to be rid of it. Rows in errors count from 1 after the header.

    A folder holds `split/class/*.jpg` (or other image types; other files are ignored), sorted by class, then path.
    Each image is read as prediction reads a whole picture: its centre square, grey, 48x48. Folder names are matched to
    the classes of `labels` in any case, with the synonyms of `CLASS_FOLDERS`. If no folder of any split bears a
    standard name, or with `labels="own"`, the classes are the folders' own names, sorted over all splits.

    Targets of a CSV, by label set:

    * `fer2013`: one-hot of the `emotion` column, every row. `votes` count only with `soft_targets`; then a target is
      0.6 of that one-hot, which so remains its largest entry, and 0.4 of the votes' distribution over the seven
      classes. Rows judged not a face, or without a vote for the seven, keep the one-hot.
    * `ferplus`: needs `votes`. The official test protocol (Barsoum et al. 2016, arXiv 1608.01041, "majority"):
      single votes are set to 0; a row stays if one of the eight emotions has strictly more than half of the
      remaining votes, `unknown` and `NF` included; the target is its one-hot. With `soft_targets` the target is the
      distribution of all votes for the eight emotions, and only rows without such a vote or judged not a face go.

    Judged not a face means: the image name is empty, or more than half of all votes are `NF`.

    Args:
        path: CSV file or folder.
        split: a name from `available_splits`, in any case, or `train`, `validation`, `test`.
        labels: 'fer2013' (seven classes), 'ferplus' (eight), or 'own' (folders only: their own names).
        votes: FER+'s `fer2013new.csv`; its row k belongs to row k of the CSV.
        soft_targets: use the whole vote distribution.

    Raises:
        FileNotFoundError: if `path` or `votes` does not exist.
        ValueError: for an unknown split or label set, an unknown class folder, an empty split, or a file that is
            damaged or not in the format above; the text names the file and the row.
    """
    path = _existing(path)
    if labels not in (*LABEL_SETS, OWN_LABELS):
        raise ValueError(f"labels is {labels!r}; give one of {', '.join(map(repr, (*LABEL_SETS, OWN_LABELS)))}.")
    if path.is_dir():
        if votes is not None or soft_targets:
            raise ValueError(f"{path} is a folder, and FER+ votes belong to the rows of a CSV; leave out the votes.")
        return _load_folders(path, split, labels)

    if labels == OWN_LABELS:
        raise ValueError(f"labels is 'own', which is for class folders only; give 'fer2013' or 'ferplus' for {path}.")
    if votes is None and (soft_targets or labels == "ferplus"):
        wanted = "soft targets" if soft_targets else "labels 'ferplus'"
        raise ValueError(f"No FER+ votes for {wanted}; give the file fer2013new.csv (github.com/microsoft/FERPlus).")
    images, emotions, usage = _read_csv(path)
    keep = usage == _resolve_split(split, list(dict.fromkeys(usage.tolist())), path)
    targets = np.eye(len(FER2013_LABELS))[emotions]
    if labels == "ferplus" or soft_targets:
        counts, not_a_face = _read_votes(_existing(votes), usage, path)
        if labels == "fer2013":
            share = _normalised(counts[:, : len(FER2013_LABELS)])
            usable = (share.sum(axis=1) > 0) & ~not_a_face
            targets[usable] = 0.6 * targets[usable] + 0.4 * share[usable]
        else:
            targets = _normalised(counts[:, : len(FERPLUS_LABELS)]) if soft_targets else _majority(counts)
            keep &= (targets.sum(axis=1) > 0) & ~not_a_face
        if not keep.any():
            raise ValueError(f"No row of split {split!r} of {path} has usable votes in {votes}; choose another split.")
    return FaceDataset(
        torch.from_numpy(images[keep]), torch.from_numpy(targets[keep].astype(np.float32)), LABEL_SETS[labels]
    )


def available_splits(path: str | Path) -> list[str]:
    """Split names of a CSV (values of `Usage`, in order of appearance) or folder (its folders of folders, sorted).

    Raises:
        FileNotFoundError: if `path` does not exist.
        ValueError: if it is neither a CSV as `load_dataset` reads it nor a folder with splits.
    """
    path = _existing(path)
    if path.is_dir():
        return list(_class_folders(path))
    return list(dict.fromkeys(_read_csv(path)[2].tolist()))


def hold_out(dataset: FaceDataset, fraction: float = 0.1, seed: int = 0) -> tuple[FaceDataset, FaceDataset]:
    """Split a data set at random into training and validation parts, each class in the same proportion.

    For data without a validation split, so that nobody selects on the test split. A class with two or more rows
    is in both parts; a single row goes to training. Both parts keep the rows' order. Pixel-identical rows may land
    on both sides: `without_duplicates_of` removes them.

    Args:
        dataset: the rows to divide.
        fraction: share of each class for validation, between 0 and 1.
        seed: the same seed gives the same parts.

    Returns:
        Training part and validation part.

    Raises:
        ValueError: if `fraction` is outside (0, 1) or no class has two rows.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction!r}; give a number between 0 and 1, such as 0.1.")
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(dataset), dtype=torch.bool)
    classes = dataset.class_indices
    for index in range(len(dataset.labels)):
        rows = (classes == index).nonzero().flatten()
        if len(rows) > 1:
            count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
            held[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    if not held.any():
        raise ValueError(f"The data set has {len(dataset)} rows and no class with two; there is nothing to hold out.")
    return dataset.subset(~held), dataset.subset(held)


def without_duplicates_of(dataset: FaceDataset, other: FaceDataset) -> FaceDataset:
    """The rows of `dataset` whose 48x48 pixels do not also stand, byte for byte, in `other`.

    FER2013 repeats faces across its splits: `without_duplicates_of(test, train)` is what a model has not seen, and
    `without_duplicates_of(train, test)` is a training set that does not give the test away.

    Raises:
        ValueError: if no row is left.
    """
    new = not_in(dataset, other)
    if not new.any():
        raise ValueError(f"All {len(dataset)} rows also stand in the other data set; give two different splits.")
    return dataset.subset(new)


def not_in(dataset: FaceDataset, other: FaceDataset) -> Tensor:
    """Bool (N,): the rows of `dataset` whose 48x48 pixels do not also stand, byte for byte, in `other`."""
    seen = {image.tobytes() for image in other.images.numpy()}
    return torch.tensor([image.tobytes() not in seen for image in dataset.images.numpy()], dtype=torch.bool)


def photos_not_in(dataset: FaceDataset, other: FaceDataset) -> Tensor:
    """Bool (N,): the rows of `dataset` whose photo does not stand in `other`, neither as it is nor in another print.

    Two faces are one photo if what they show besides its local mean correlates by at least `SAME_PHOTO`. Light,
    contrast, compression and a shift by a pixel do not change that much; a photo that is mirrored or framed otherwise
    is not recognised, so that more rows than these may have been seen.
    """
    ours, theirs = (_fine_structure(faces.images) for faces in (dataset, other))
    closest = torch.cat([(rows @ theirs.T).amax(1) for rows in ours.split(256)])
    return not_in(dataset, other) & (closest < SAME_PHOTO)


def _fine_structure(images: Tensor) -> Tensor:
    """Float (N, 400) of mean 0 and length 1: the inner 20x20 of each face at half its size, less their local mean."""
    half = torch.cat([F.avg_pool2d(block.float(), 2) for block in images[:, None].split(4096)])
    fine = half - F.avg_pool2d(half, 9, stride=1, padding=4, count_include_pad=False)
    fine = fine[..., 2:-2, 2:-2].flatten(1)
    return F.normalize(fine - fine.mean(1, keepdim=True), dim=1)


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a FER2013 CSV, a folder of class folders or a votes CSV.")
    return path


def _resolve_split(split: str, available: list[str], path: Path) -> str:
    # The file's own name wins over the generic meaning of a word.
    synonyms = next((names for names in SPLIT_NAMES if split.lower() in names), ())
    by_lower_case = {name.lower(): name for name in available}
    for name in (split.lower(), *synonyms):
        if name in by_lower_case:
            return by_lower_case[name]
    raise ValueError(f"{path} has no split {split!r}; give one of {', '.join(available)}.")


# CSV


def _read_csv(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 (N, 48, 48), emotions uint8 (N,) and usage str (N,), from the cache if it holds this content."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    folder = Path(os.environ.get("EMOTION_CACHE") or os.path.expanduser("~/.cache/emotion"))
    cache = folder / f"fer2013-{digest.hexdigest()}.npz"
    # No cache yet, or a damaged one: the file itself is the truth.
    with suppress(*READ_ERRORS):
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, emotions, usage = arrays["images"], arrays["emotions"], arrays["usage"]
        if images.dtype == np.uint8 and images.shape == (len(emotions), IMAGE_SIZE, IMAGE_SIZE):
            return images, emotions, usage
    images, emotions, usage = _parse_csv(path)
    # The cache only saves time; without a writable place for it the next read parses again.
    with suppress(OSError):
        _write_cache(cache, images=images, emotions=emotions, usage=usage)
    return images, emotions, usage


def _write_cache(cache: Path, **arrays: np.ndarray) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=cache.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(name, cache)
    except BaseException:
        os.unlink(name)
        raise


def _parse_csv(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    emotion_index = {str(index): index for index in range(len(FER2013_LABELS))}
    images: list[np.ndarray] = []
    emotions: list[int] = []
    usage: list[str] = []
    for table in _tables(path, ("emotion", "pixels", "usage")):
        block = np.empty((len(table), PIXELS), np.uint8)
        rows = zip(table["emotion"], table["pixels"], table["usage"], strict=True)
        for i, (emotion, pixels, split) in enumerate(rows):
            where = f"{path}, row {len(emotions) + 1}"
            if emotion.strip() not in emotion_index:
                raise ValueError(
                    f"{where}: emotion is {_shortened([emotion])}; FER2013's labels are the numbers 0 to 6."
                )
            if not split.strip():
                raise ValueError(f"{where}: Usage is empty; give the row's split, such as Training.")
            block[i] = _parse_pixels(pixels, where)
            emotions.append(emotion_index[emotion.strip()])
            usage.append(split.strip())
        images.append(block)
    if not emotions:
        raise ValueError(f"{path} has a header but no rows; give a complete FER2013 CSV.")
    return np.concatenate(images).reshape(-1, IMAGE_SIZE, IMAGE_SIZE), np.array(emotions, np.uint8), np.array(usage)


def _parse_pixels(text: str, where: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            # Older NumPy only warns of text that is no number and stops there; newer raises.
            warnings.simplefilter("error", DeprecationWarning)
            values = np.fromstring(text, dtype=np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        raise ValueError(
            f"{where}: the pixels are not all whole numbers; give {PIXELS} values from 0 to 255 with spaces between."
        ) from None
    if len(values) != PIXELS:
        raise ValueError(f"{where}: {len(values)} pixels instead of {PIXELS} ({IMAGE_SIZE}x{IMAGE_SIZE} grey values).")
    if values.min() < 0 or values.max() > 255:
        bad = values[(values < 0) | (values > 255)][0]
        raise ValueError(f"{where}: a pixel is {bad}; grey values are 0 to 255.")
    return values


def _tables(path: Path, columns: tuple[str, ...]) -> Iterator[pd.DataFrame]:
    """The CSV in blocks of text columns, names stripped and in lower case; small blocks keep memory low."""
    for block in _blocks(path):
        table = block.rename(columns=lambda name: name.strip().lower()).fillna("")
        missing = [name for name in columns if name not in table]
        if missing:
            raise ValueError(
                f"{path} has no column {', '.join(map(repr, missing))}, only {_shortened(table)}; "
                "give a file with all its columns and their names in the first line."
            )
        yield table


def _blocks(path: Path) -> Iterator[pd.DataFrame]:
    try:
        with pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, chunksize=4096) as reader:
            while True:
                with warnings.catch_warnings():
                    # Where the first line has more values than names, pandas only warns, and drops the last ones.
                    warnings.simplefilter("error", pd.errors.ParserWarning)
                    block = next(reader, None)
                if block is None:
                    return
                yield block
    except (*READ_ERRORS, pd.errors.ParserWarning) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} cannot be read as a CSV file ({reason}); fetch or unpack it again.") from error


def _shortened(names: Iterable[str]) -> str:
    # A file without a header has 2,304 pixel values for a column name, one with a broken line for an emotion.
    shown = [repr(name if len(name) <= 40 else f"{name[:37]}...") for name in names]
    return ", ".join(shown[:12] + ["..."] * (len(shown) > 12))


# FER+ votes


def _read_votes(path: Path, usage: np.ndarray, csv: Path) -> tuple[np.ndarray, np.ndarray]:
    """Votes int64 (N, 10) in the order of FERPLUS_LABELS, unknown, NF; and bool (N,): judged not a face."""
    columns = [*sorted(FERPLUS_COLUMNS, key=lambda name: FERPLUS_LABELS.index(FERPLUS_COLUMNS[name])), "unknown", "nf"]
    table = pd.concat(_tables(path, ("usage", "image name", *columns)), ignore_index=True)
    if len(table) != len(usage):
        raise ValueError(
            f"{path} has {len(table)} rows but {csv} {len(usage)}; give files whose rows match one to one."
        )
    differs = (table["usage"].str.strip() != usage).to_numpy()
    if differs.any():
        row = int(differs.argmax())
        raise ValueError(
            f"{path}, row {row + 1}: Usage is {_shortened([table['usage'][row]])} but {_shortened([str(usage[row])])} "
            f"in {csv}; give files whose rows match one to one."
        )
    counts = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = ~((counts >= 0) & (counts <= MAX_VOTES) & (counts == np.floor(counts))).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{path}, row {bad.argmax() + 1}: votes are whole numbers from 0 to {MAX_VOTES:,}; correct the file."
        )
    not_a_face = (table["image name"].str.strip() == "").to_numpy() | (counts[:, -1] > counts.sum(axis=1) / 2)
    return counts.astype(np.int64), not_a_face


def _majority(counts: np.ndarray) -> np.ndarray:
    """One-hot float (N, 8) of the emotion with more than half of the votes left without single ones; else zeros."""
    counts = np.where(counts == 1, 0, counts)
    return (2 * counts > counts.sum(axis=1, keepdims=True))[:, : len(FERPLUS_LABELS)].astype(np.float64)


def _normalised(counts: np.ndarray) -> np.ndarray:
    """Rows divided by their sums; rows of zeros stay."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


# Class folders


def _load_folders(root: Path, split: str, labels: str) -> FaceDataset:
    splits = _class_folders(root)
    folders = splits[_resolve_split(split, list(splits), root)]
    names, classes = _match_classes(root, {folder.name for group in splits.values() for folder in group}, labels)
    rows = sorted(
        (names.index(classes[folder.name]), file)
        for folder in folders
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not file.name.startswith(".")
    )
    if not rows:
        raise ValueError(
            f"Split {split!r} of {root} has no images in its class folders; put some there "
            f"({', '.join(IMAGE_SUFFIXES)})."
        )
    images = np.stack([_read_image(file) for _, file in rows])
    targets = torch.eye(len(names))[[index for index, _ in rows]]
    return FaceDataset(torch.from_numpy(images), targets, names)


def _class_folders(root: Path) -> dict[str, list[Path]]:
    """Class folders of each split; a split is a folder in `root` that holds folders."""
    splits = {folder.name: _folders(folder) for folder in _folders(root)}
    splits = {name: folders for name, folders in splits.items() if folders}
    if not splits:
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:12]) or "nothing"
        raise ValueError(
            f"{root} holds no <split>/<class> folders but {found}; give the folder above train/, or a CSV file."
        )
    return splits


def _folders(folder: Path) -> list[Path]:
    # "__MACOSX" is what the Mac's archiver adds beside the content.
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith((".", "__")))


def _match_classes(root: Path, folders: set[str], labels: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Class names in order, and the class of each folder name."""
    known = {name: CLASS_FOLDERS[name.lower()] for name in folders if name.lower() in CLASS_FOLDERS}
    if labels == OWN_LABELS or not known:
        return tuple(sorted(folders)), {name: name for name in folders}
    unknown = sorted(name for name in folders if known.get(name) not in LABEL_SETS[labels])
    if unknown:
        raise ValueError(
            f"Unknown class folder {', '.join(map(repr, unknown))} in {root}; the classes of {labels!r} are "
            f"{', '.join(LABEL_SETS[labels])}; rename or remove it, or choose other "
            f"labels; {OWN_LABELS!r} takes the folders' own names."
        )
    return LABEL_SETS[labels], known


def _read_image(file: Path) -> np.ndarray:
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            return crop_whole(open_image(image))
    except Exception as error:  # Pillow's readers raise anything on damaged files.
        raise ValueError(f"{file} cannot be read as an image ({error}); replace or remove it.") from error
