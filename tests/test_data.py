"""The readers against hand-computed values and a plain-Python port of FER+'s own rule."""

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from emotion import data
from emotion.data import (
    FaceDataset,
    available_splits,
    hold_out,
    load_dataset,
    photos_not_in,
    without_duplicates_of,
)
from emotion.labels import FER2013_LABELS, FERPLUS_LABELS

VOTE_HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("EMOTION_CACHE", str(folder))
    return folder


def random_faces(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 48, 48), dtype=np.uint8)


def csv_text(faces: np.ndarray, emotions: list[int], usage: list[str]) -> str:
    lines = ["emotion,pixels,Usage"]
    for face, emotion, split in zip(faces, emotions, usage, strict=True):
        lines.append(f"{emotion},{' '.join(str(int(v)) for row in face for v in row)},{split}")
    return "\n".join(lines) + "\n"


USAGE = ["Training"] * 5 + ["PublicTest"] * 2 + ["PrivateTest"]
EMOTIONS = [0, 1, 2, 3, 4, 5, 6, 0]


@pytest.fixture
def csv(tmp_path) -> Path:
    file = tmp_path / "fer2013.csv"
    file.write_text(csv_text(random_faces(8), EMOTIONS, USAGE))
    return file


def write_votes(folder: Path, rows: list[tuple[str, str, list[int]]]) -> Path:
    """Rows are (Usage, image name, votes in the order of VOTE_HEADER)."""
    file = folder / "fer2013new.csv"
    lines = [",".join([usage, name, *map(str, votes)]) for usage, name, votes in rows]
    file.write_text("\n".join([VOTE_HEADER, *lines]) + "\n")
    return file


def write_image(file: Path, array: np.ndarray | Image.Image, **options) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(file, **options)


# FaceDataset


def test_items_subset_and_class_indices():
    faces = torch.from_numpy(random_faces(3))
    targets = torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.0, 1.0]])
    dataset = FaceDataset(faces, targets, ("a", "b"))
    image, target = dataset[1]
    assert image.shape == (1, 48, 48) and image.dtype == torch.uint8 and torch.equal(image[0], faces[1])
    assert torch.equal(target, targets[1]) and len(dataset) == 3
    assert dataset.class_indices.tolist() == [1, 0, 1]
    for indices in ([2, 0], torch.tensor([2, 0])):
        part = dataset.subset(indices)
        assert torch.equal(part.images, faces[[2, 0]]) and torch.equal(part.targets, targets[[2, 0]])
    assert torch.equal(dataset.subset(torch.tensor([False, True, True])).images, faces[1:])
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=3)))
    assert batch[0].shape == (3, 1, 48, 48) and batch[1].shape == (3, 2)


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (torch.zeros(2, 48, 48), torch.eye(2), "images are torch.float32"),
        (torch.zeros(2, 40, 48, dtype=torch.uint8), torch.eye(2), r"\(2, 40, 48\)"),
        (torch.zeros(2, 48, 48, dtype=torch.uint8), torch.eye(2).double(), "targets are torch.float64"),
        (torch.zeros(2, 48, 48, dtype=torch.uint8), torch.eye(3), r"targets are torch.float32 \(3, 3\)"),
        (torch.zeros(2, 48, 48, dtype=torch.uint8), torch.tensor([[0, 1], [0.5, 0.4]]), r"targets\[1\]"),
        (torch.zeros(2, 48, 48, dtype=torch.uint8), torch.tensor([[-1.0, 2], [0, 1]]), r"targets\[0\]"),
        (torch.zeros(2, 48, 48, dtype=torch.uint8), torch.full((2, 2), float("nan")), r"targets\[0\]"),
    ],
)
def test_dataset_refuses_wrong_tensors(images, targets, message):
    with pytest.raises(ValueError, match=message):
        FaceDataset(images, targets, ("a", "b"))


# CSV


def test_csv_rows_pixels_and_labels(csv):
    dataset = load_dataset(csv, "Training")
    assert dataset.labels == FER2013_LABELS
    np.testing.assert_array_equal(dataset.images.numpy(), random_faces(8)[:5])
    assert torch.equal(dataset.targets, torch.eye(7)[[0, 1, 2, 3, 4]])
    assert dataset.targets.dtype == torch.float32


def test_csv_split_names(csv):
    assert available_splits(csv) == ["Training", "PublicTest", "PrivateTest"]
    for split, emotions in {
        "train": [0, 1, 2, 3, 4],
        "TRAINING": [0, 1, 2, 3, 4],
        "validation": [5, 6],
        "val": [5, 6],
        "publictest": [5, 6],
        "test": [0],
        "PrivateTest": [0],
    }.items():
        assert load_dataset(csv, split).class_indices.tolist() == emotions, split
    with pytest.raises(ValueError, match=r"no split 'holdout'; give one of Training, PublicTest, PrivateTest\."):
        load_dataset(csv, "holdout")


def test_csv_without_the_test_rows_says_what_it_has(tmp_path):
    file = tmp_path / "part.csv"
    file.write_text(csv_text(random_faces(2), [0, 1], ["Training", "PublicTest"]))
    with pytest.raises(ValueError, match=r"part\.csv has no split 'test'; give one of Training, PublicTest"):
        load_dataset(file, "test")


def test_icml_face_data_has_spaces_and_another_order(csv, tmp_path):
    file = tmp_path / "icml_face_data.csv"
    rows = [line.split(",") for line in csv.read_text().splitlines()[1:]]
    lines = [f"{emotion}, {usage},{pixels}" for emotion, pixels, usage in rows]
    file.write_text("\ufeffemotion, Usage, pixels\r\n" + "\r\n".join(lines))
    for split in ("train", "validation", "test"):
        ours, reference = load_dataset(file, split), load_dataset(csv, split)
        assert torch.equal(ours.images, reference.images) and torch.equal(ours.targets, reference.targets)


def test_compressed_csv_equals_plain(csv, tmp_path):
    content = csv.read_bytes()
    for suffix, compress in {"xz": lzma.compress, "gz": gzip.compress, "bz2": bz2.compress}.items():
        (tmp_path / f"fer2013.csv.{suffix}").write_bytes(compress(content))
    with zipfile.ZipFile(tmp_path / "fer2013.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fer2013/fer2013.csv", content)
    reference = load_dataset(csv, "train")
    for suffix in ("xz", "gz", "bz2", "zip"):
        dataset = load_dataset(f"{csv}.{suffix}", "train")
        assert torch.equal(dataset.images, reference.images) and torch.equal(dataset.targets, reference.targets)


def test_rows_beyond_one_block_keep_their_numbers(csv, tmp_path, monkeypatch):
    """Files longer than one block of the reader: order is kept, and an error still names the row of the file."""
    lines = csv.read_text().splitlines()
    original = data.pd.read_csv
    monkeypatch.setattr(data.pd, "read_csv", lambda *args, **kw: original(*args, **{**kw, "chunksize": 3}))
    np.testing.assert_array_equal(load_dataset(csv, "train").images.numpy(), random_faces(8)[:5])
    lines[7] = lines[7].replace("6,", "7,", 1)
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"bad\.csv, row 7: emotion is '7'"):
        load_dataset(bad, "train")


def with_row(text: str) -> str:
    good = csv_text(random_faces(2), [0, 1], ["Training"] * 2)
    return good + text + "\n"


FULL = " ".join(["7"] * 2304)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("emotion,pixels\n0,1 2 3\n", r"no column 'usage', only 'emotion', 'pixels'"),
        (f"0,{FULL},Training\n", r"no column 'emotion', 'pixels', 'usage', only '0', '7 7 .*\.\.\.', 'training'"),
        (with_row(f"3,{FULL[:-2]},Training"), r"row 3: 2303 pixels instead of 2304"),
        (with_row(f"3,{FULL} 7,Training"), r"row 3: 2305 pixels instead of 2304"),
        (with_row("3,,Training"), r"row 3: 0 pixels instead of 2304"),
        (with_row(f"3,256{FULL[1:]},Training"), r"row 3: a pixel is 256"),
        (with_row(f"3,{FULL[:-1]}-1,Training"), r"row 3: a pixel is -1"),
        (with_row(f"3,{FULL[:-1]}99999999999999999999,Training"), r"row 3: a pixel is 9"),
        (with_row(f"3,{FULL[:-1]}x,Training"), r"row 3: the pixels are not all whole numbers"),
        (with_row(f"3,{FULL} x,Training"), r"row 3: the pixels are not all whole numbers"),
        (with_row(f"3,{FULL[:-1]}7.5,Training"), r"row 3: the pixels are not all whole numbers"),
        (with_row(f"7,{FULL},Training"), r"row 3: emotion is '7'"),
        (with_row(f"-1,{FULL},Training"), r"row 3: emotion is '-1'"),
        (with_row(f"happy,{FULL},Training"), r"row 3: emotion is 'happy'"),
        (with_row(f"3,{FULL}"), r"row 3: Usage is empty"),
        (with_row(f"3,{FULL},Training,1"), r"cannot be read as a CSV file"),
        (f"emotion,pixels,Usage\n3,{FULL},Training,1\n", r"cannot be read as a CSV file"),
        ("emotion,pixels,Usage\n", r"has a header but no rows"),
        ("", r"cannot be read as a CSV file"),
    ],
)
def test_malformed_csv_is_one_sentence(tmp_path, cache, text, message):
    file = tmp_path / "broken.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(file, "train")
    assert "broken.csv" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not cache.exists()


def test_damaged_archives_and_foreign_files(csv, tmp_path):
    whole = {"a.csv.xz": lzma.compress(csv.read_bytes()), "a.csv.gz": gzip.compress(csv.read_bytes())}
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    (tmp_path / "a.csv.zip").write_bytes(b"PK no archive")
    (tmp_path / "a.csv.bz2").write_bytes(b"no archive")
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    for name in (*whole, "a.csv.zip", "a.csv.bz2", "a.png"):
        with pytest.raises(ValueError, match=rf"{name} (cannot be read as a CSV file|has no column)"):
            load_dataset(tmp_path / name, "train")


def test_missing_file_and_wrong_arguments(csv, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv does not exist"):
        load_dataset(tmp_path / "nowhere.csv", "train")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv does not exist"):
        available_splits(tmp_path / "nowhere.csv")
    with pytest.raises(FileNotFoundError, match=r"votes\.csv does not exist"):
        load_dataset(csv, "train", "ferplus", tmp_path / "votes.csv")
    with pytest.raises(ValueError, match="labels is 'ckplus'; give one of 'fer2013', 'ferplus'"):
        load_dataset(csv, "train", "ckplus")
    with pytest.raises(ValueError, match="labels is 'own', which is for class folders"):
        load_dataset(csv, "train", "own")
    with pytest.raises(ValueError, match=r"No FER\+ votes for labels 'ferplus'"):
        load_dataset(csv, "train", "ferplus")
    with pytest.raises(ValueError, match=r"No FER\+ votes for soft targets"):
        load_dataset(csv, "train", soft_targets=True)


# Cache


def test_second_read_comes_from_the_cache(csv, cache, monkeypatch):
    first = load_dataset(csv, "train")
    assert [file.suffix for file in cache.iterdir()] == [".npz"]

    def no_parsing(*args, **kwargs):
        raise AssertionError("parsed a second time")

    monkeypatch.setattr(data.pd, "read_csv", no_parsing)
    assert torch.equal(load_dataset(csv, "train").images, first.images)
    moved = csv.rename(csv.with_name("moved.csv"))
    assert torch.equal(load_dataset(moved, "train").targets, first.targets)


def test_changed_file_is_read_again_even_with_the_old_size_and_time(csv):
    before = csv.stat()
    assert load_dataset(csv, "train").class_indices.tolist() == [0, 1, 2, 3, 4]
    csv.write_text(csv.read_text().replace("\n0,", "\n6,", 1))
    os.utime(csv, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert csv.stat().st_size == before.st_size
    assert load_dataset(csv, "train").class_indices.tolist() == [6, 1, 2, 3, 4]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty", "pickle", "other arrays", "other shape"])
def test_damaged_cache_is_replaced(csv, cache, damage):
    reference = load_dataset(csv, "train")
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:5000])
    elif damage == "flipped":
        content[5000] ^= 255
        file.write_bytes(content)
    elif damage == "text":
        file.write_text("not an archive")
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "pickle":
        np.savez(file, images=np.array([{}], dtype=object), emotions=np.zeros(1), usage=np.array(["Training"]))
    elif damage == "other arrays":
        np.savez(file, faces=np.zeros(3))
    else:
        np.savez(file, images=np.zeros((2, 9), np.uint8), emotions=np.zeros(2, np.uint8), usage=np.array(["a", "b"]))
    again = load_dataset(csv, "train")
    assert torch.equal(again.images, reference.images) and torch.equal(again.targets, reference.targets)
    with np.load(file, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["images"], random_faces(8))
    assert len(list(cache.iterdir())) == 1


def test_cache_folder_that_cannot_be_written_does_not_matter(csv, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EMOTION_CACHE", str(tmp_path / "file" / "cache"))
    assert len(load_dataset(csv, "train")) == 5
    assert (tmp_path / "file").read_text() == "in the way"


def test_interrupted_write_leaves_no_cache(csv, cache, monkeypatch):
    def interrupted(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(data.np, "savez", interrupted)
    assert len(load_dataset(csv, "train")) == 5
    assert list(cache.iterdir()) == []


def test_default_cache_is_in_the_home_folder(csv, tmp_path, monkeypatch):
    monkeypatch.delenv("EMOTION_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert len(load_dataset(csv, "train")) == 5
    assert len(list((tmp_path / "home" / ".cache" / "emotion").glob("*.npz"))) == 1


# FER+ votes. Order of the lists: neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, NF.

HAND_COMPUTED = [
    # (votes, name, class by the official protocol or None)
    ([6, 0, 1, 1, 0, 0, 0, 0, 2, 0], "a.png", "neutral"),  # singles go: 6 of 8
    ([4, 0, 0, 1, 3, 2, 0, 0, 0, 0], "b.png", None),  # 4 of 9: the most, but no majority
    ([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], "c.png", None),  # an exact half each
    ([0, 4, 0, 0, 2, 0, 2, 0, 0, 0], "d.png", None),  # an exact half of 8
    ([0, 4, 1, 1, 1, 1, 0, 0, 2, 0], "e.png", "happy"),  # 4 of 10, but 4 of 6 without single votes
    ([0, 4, 0, 0, 0, 0, 0, 0, 4, 2], "f.png", None),  # unknown and NF count below the line
    ([0, 0, 0, 0, 0, 0, 0, 0, 9, 1], "g.png", None),  # won by unknown
    ([2, 0, 0, 0, 0, 0, 0, 0, 0, 8], "h.png", None),  # won by NF
    ([0, 0, 0, 3, 0, 0, 0, 7, 0, 0], "i.png", "contempt"),
    ([0, 0, 0, 0, 9, 1, 0, 0, 0, 0], "", None),  # not a face: no image name
    ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], "k.png", None),  # nothing left
    ([1, 0, 0, 0, 0, 0, 9, 0, 0, 0], "l.png", "fear"),
    ([0, 0, 6, 0, 0, 4, 0, 0, 0, 0], "m.png", "surprise"),
    ([0, 0, 0, 6, 0, 4, 0, 0, 0, 0], "n.png", "sad"),
    ([0, 0, 0, 0, 6, 4, 0, 0, 0, 0], "o.png", "angry"),
    ([0, 0, 0, 0, 4, 6, 0, 0, 0, 0], "p.png", "disgust"),
    ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "q.png", None),
]


@pytest.fixture
def voted(tmp_path) -> tuple[Path, Path]:
    count = len(HAND_COMPUTED)
    csv = tmp_path / "fer2013.csv"
    csv.write_text(csv_text(random_faces(count), [i % 7 for i in range(count)], ["Training"] * count))
    return csv, write_votes(tmp_path, [("Training", name, votes) for votes, name, _ in HAND_COMPUTED])


def test_ferplus_protocol_by_hand(voted):
    dataset = load_dataset(voted[0], "train", "ferplus", voted[1])
    kept = [row for row, (_, _, label) in enumerate(HAND_COMPUTED) if label]
    assert dataset.labels == FERPLUS_LABELS
    np.testing.assert_array_equal(dataset.images.numpy(), random_faces(len(HAND_COMPUTED))[kept])
    expected = [FERPLUS_LABELS.index(HAND_COMPUTED[row][2]) for row in kept]
    assert torch.equal(dataset.targets, torch.eye(8)[expected])


def official_majority(votes: list[int]) -> str | None:
    """Port of `_process_data` (mode 'majority') of microsoft/FERPlus, src/ferplus.py."""
    names = ["neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt", "unknown", "NF"]
    votes = [0.0 if vote < 1.0 + sys.float_info.epsilon else float(vote) for vote in votes]
    if not max(votes) > 0.5 * sum(votes):
        return None
    winner = names[votes.index(max(votes))]
    return winner if winner not in ("unknown", "NF") else None


def test_ferplus_protocol_equals_the_official_code(tmp_path):
    """300 rows of ten random votes; the faces only number the rows."""
    draw = random.Random(1)
    rows = []
    for _ in range(300):
        favourites = draw.sample(range(10), 3)
        votes = [0] * 10
        for _ in range(10):
            votes[draw.choice(favourites)] += 1
        rows.append(votes)
    csv = tmp_path / "fer2013.csv"
    faces = np.broadcast_to(np.arange(300, dtype=np.uint8)[:, None, None], (300, 48, 48))
    csv.write_text(csv_text(faces, [0] * 300, ["Training"] * 300))
    file = write_votes(tmp_path, [("Training", "x.png", votes) for votes in rows])
    dataset = load_dataset(csv, "train", "ferplus", file)
    expected = [(row % 256, official_majority(votes)) for row, votes in enumerate(rows)]
    expected = [(grey, label) for grey, label in expected if label]
    assert 50 < len(expected) < 250
    pairs = zip(dataset.images, dataset.class_indices, strict=True)
    ours = [(int(face[0, 0]), FERPLUS_LABELS[index]) for face, index in pairs]
    assert ours == expected


def test_ferplus_soft_targets_are_all_votes_for_emotions(voted):
    dataset = load_dataset(voted[0], "train", "ferplus", voted[1], soft_targets=True)
    # Only-unknown (g), NF majority (h), no name (j) and no vote (q) go; every other row stays.
    kept = [row for row in range(len(HAND_COMPUTED)) if row not in (6, 7, 9, 16)]
    np.testing.assert_array_equal(dataset.images.numpy(), random_faces(len(HAND_COMPUTED))[kept])
    # angry, disgust, fear, happy, sad, surprise, neutral, contempt
    by_hand = {
        0: [0, 0, 0, 0, 1 / 8, 1 / 8, 6 / 8, 0],
        1: [0.3, 0.2, 0, 0, 0.1, 0, 0.4, 0],
        5: [0, 0, 0, 1, 0, 0, 0, 0],
        8: [0, 0, 0, 0, 0.3, 0, 0, 0.7],
        10: [1 / 8] * 8,
    }
    for row, target in by_hand.items():
        assert dataset.targets[kept.index(row)].tolist() == pytest.approx(target)


def test_fer2013_soft_targets_mix_label_and_votes(voted):
    dataset = load_dataset(voted[0], "train", "fer2013", voted[1], soft_targets=True)
    assert len(dataset) == len(HAND_COMPUTED) and dataset.labels == FER2013_LABELS
    # The label of row k is k mod 7.
    by_hand = {
        0: [0.6, 0, 0, 0, 0.05, 0.05, 0.3],
        1: [0.12, 0.6 + 0.08, 0, 0, 0.04, 0, 0.16],
        6: [0, 0, 0, 0, 0, 0, 1],  # votes for unknown only
        7: [1, 0, 0, 0, 0, 0, 0],  # judged not a face
        8: [0, 0.6, 0, 0, 0.4, 0, 0],  # contempt is left out and the rest fills up
        9: [0, 0, 1, 0, 0, 0, 0],  # no image name
        16: [0, 0, 1, 0, 0, 0, 0],  # no votes
    }
    for row, target in by_hand.items():
        assert dataset.targets[row].tolist() == pytest.approx(target)
    assert dataset.class_indices.tolist() == [i % 7 for i in range(len(HAND_COMPUTED))]


def test_fer2013_labels_ignore_votes(voted):
    dataset = load_dataset(voted[0], "train", "fer2013", voted[1])
    assert dataset.class_indices.tolist() == [i % 7 for i in range(len(HAND_COMPUTED))]


def test_votes_follow_the_split(tmp_path):
    """Row k of the votes is row k of the CSV, whatever the order of the splits."""
    csv = tmp_path / "fer2013.csv"
    usage = ["PublicTest", "Training", "PublicTest"]
    csv.write_text(csv_text(random_faces(3), [0, 0, 0], usage))
    votes = [[0, 9, 0, 0, 0, 0, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 9, 0, 0, 0, 0, 0, 0, 0]]
    file = write_votes(tmp_path, [(split, "x.png", row) for split, row in zip(usage, votes, strict=True)])
    dataset = load_dataset(csv, "validation", "ferplus", file)
    assert [FERPLUS_LABELS[i] for i in dataset.class_indices] == ["happy", "surprise"]
    np.testing.assert_array_equal(dataset.images.numpy(), random_faces(3)[[0, 2]])


def test_votes_that_do_not_fit_are_refused(csv, tmp_path):
    happy = [0, 9, 0, 0, 0, 0, 0, 0, 0, 0]
    rows = [(usage, "x.png", happy) for usage in USAGE]
    with pytest.raises(ValueError, match=r"fer2013new\.csv has 7 rows but .*fer2013\.csv 8"):
        load_dataset(csv, "train", "ferplus", write_votes(tmp_path, rows[:-1]))
    with pytest.raises(ValueError, match=r"row 3: Usage is 'PrivateTest' but 'Training' in .*fer2013\.csv"):
        load_dataset(csv, "train", "ferplus", write_votes(tmp_path, [*rows[:2], rows[-1], *rows[3:]]))
    for wrong in (-1, "many", 0.5, "", "inf", "1e30"):
        broken = [*rows[:4], ("Training", "x.png", [*happy[:-1], wrong]), *rows[5:]]
        with pytest.raises(ValueError, match=r"fer2013new\.csv, row 5: votes are whole numbers"):
            load_dataset(csv, "train", "ferplus", write_votes(tmp_path, broken))
    with pytest.raises(ValueError, match=r"fer2013\.csv has no column 'image name', 'anger', .*only 'emotion'"):
        load_dataset(csv, "train", "ferplus", csv)
    nobody = [(split, name, [0] * 8 + [10, 0] if split == "Training" else votes) for split, name, votes in rows]
    for soft in (False, True):
        with pytest.raises(ValueError, match=r"No row of split 'train' of .*fer2013\.csv has usable votes"):
            load_dataset(csv, "train", "ferplus", write_votes(tmp_path, nobody), soft)


# Class folders


def test_class_folders_in_fer2013_order(tmp_path):
    """The other Kaggle layout: train and test, seven folders each, 48x48 pictures unchanged."""
    faces = random_faces(14)
    for split in ("train", "test"):
        for index, name in enumerate(FER2013_LABELS):
            write_image(tmp_path / split / name / "im0.png", faces[index + 7 * (split == "test")])
    (tmp_path / "train" / "angry" / "Thumbs.db").write_bytes(b"no image")
    (tmp_path / "train" / "angry" / "._im0.png").write_bytes(b"no image")
    (tmp_path / "__MACOSX" / "train").mkdir(parents=True)
    (tmp_path / ".git" / "objects").mkdir(parents=True)
    assert available_splits(tmp_path) == ["test", "train"]
    for split, expected in {"train": faces[:7], "Testing": faces[7:]}.items():
        dataset = load_dataset(tmp_path, split)
        assert dataset.labels == FER2013_LABELS
        np.testing.assert_array_equal(dataset.images.numpy(), expected)
        assert torch.equal(dataset.targets, torch.eye(7))
    with pytest.raises(ValueError, match=r"no split 'validation'; give one of test, train"):
        load_dataset(tmp_path, "validation")


def test_rows_are_sorted_by_class_then_name(tmp_path):
    faces = random_faces(5)
    for name, index in {"sad/b": 3, "sad/a": 2, "angry/10": 0, "angry/9": 1, "sad/deeper/c": 4}.items():
        write_image(tmp_path / "val" / f"{name}.png", faces[index])
    dataset = load_dataset(tmp_path, "validation")
    np.testing.assert_array_equal(dataset.images.numpy(), faces)
    assert dataset.class_indices.tolist() == [0, 0, 4, 4, 4]
    assert dataset.targets.shape == (5, 7)


def test_folder_names_in_any_case_and_with_synonyms(tmp_path):
    names = {"Anger": 0, "ANGRY": 0, "disgusted": 1, "Fearful": 2, "happiness": 3, "Sadness": 4, "surprised": 5}
    for name in names:
        write_image(tmp_path / "Train" / name / "a.png", random_faces(1)[0])
    write_image(tmp_path / "Train" / "Neutral" / "a.jpg", random_faces(1)[0])
    dataset = load_dataset(tmp_path, "train")
    assert dataset.class_indices.tolist() == [0, 0, 1, 2, 3, 4, 5, 6]


def test_contempt_folder_needs_the_eight_classes(tmp_path):
    for name in ("contempt", "happy"):
        write_image(tmp_path / "train" / name / "a.png", random_faces(1)[0])
    dataset = load_dataset(tmp_path, "train", "ferplus")
    assert (dataset.labels, dataset.label_set) == (FERPLUS_LABELS, "ferplus") and dataset.class_indices.tolist() == [
        3,
        7,
    ]
    with pytest.raises(ValueError, match=r"Unknown class folder 'contempt'.*angry, disgust"):
        load_dataset(tmp_path, "train")


def test_foreign_class_folders_keep_their_names(tmp_path):
    """Classes come from all splits, so that a split without one of them has the same columns."""
    for name in ("train/yawning", "train/Awake", "train/bored", "test/bored"):
        write_image(tmp_path / name / "a.png", random_faces(1)[0])
    for labels in ("fer2013", "own"):
        train, test = load_dataset(tmp_path, "train", labels), load_dataset(tmp_path, "test", labels)
        assert train.labels == test.labels == ("Awake", "bored", "yawning")
        assert train.label_set == "own"
        assert train.class_indices.tolist() == [0, 1, 2] and test.class_indices.tolist() == [1]


def test_one_unknown_folder_among_known_ones_is_an_error(tmp_path):
    for name in ("happy", "sad", "tired"):
        write_image(tmp_path / "train" / name / "a.png", random_faces(1)[0])
    with pytest.raises(ValueError, match=r"Unknown class folder 'tired' in .*angry, disgust, fear, happy.*'own'"):
        load_dataset(tmp_path, "train")
    assert load_dataset(tmp_path, "train", "own").labels == ("happy", "sad", "tired")


def test_images_of_any_size_and_mode_become_grey_48(tmp_path):
    """One picture saved in many ways: dark left half, bright right half, brightness 64 and 192."""
    grey = np.full((48, 48), 64, np.uint8)
    grey[:, 24:] = 192
    large = grey.repeat(5, axis=0).repeat(5, axis=1)
    folder = tmp_path / "train" / "happy"
    rgb = Image.fromarray(large).convert("RGB")
    write_image(folder / "a_rgb.png", rgb)
    write_image(folder / "b_jpeg.JPG", rgb, quality=95)
    write_image(folder / "c_rgba.png", rgb.convert("RGBA"))
    write_image(folder / "d_palette.gif", rgb.convert("P", palette=Image.Palette.ADAPTIVE))
    write_image(folder / "e_16bit.png", large.astype(np.uint16) * 257)
    write_image(folder / "f_wide.png", np.pad(large, ((0, 0), (100, 100)), mode="edge"))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: show it rotated by 270 degrees counter-clockwise
    write_image(folder / "g_exif.jpg", rgb.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=95)
    write_image(folder / "h_fractions.tif", (large / 255).astype(np.float32))
    write_image(folder / "i_bit.png", Image.fromarray(large > 128))
    images = load_dataset(tmp_path, "train").images.numpy().astype(int)
    assert images.shape == (9, 48, 48)
    for row in range(8):
        # The filter may ring next to the edge.
        assert np.abs(images[row][:, :20] - 64).max() <= 4 and np.abs(images[row][:, 28:] - 192).max() <= 4, row
    assert images[8][:, :20].max() <= 4 and images[8][:, 28:].min() >= 251


def test_what_is_cut_out_stands_before_the_grey_that_prediction_lays_under_it(tmp_path):
    cut = np.zeros((96, 96, 4), np.uint8)
    cut[:, 48:] = 200, 200, 200, 255
    write_image(tmp_path / "train" / "happy" / "a.png", cut)
    (tmp_path / "train" / "happy" / "folder.png").mkdir()
    [image] = load_dataset(tmp_path, "train").images.numpy().astype(int)
    assert np.abs(image[:, :20] - 128).max() <= 1 and np.abs(image[:, 28:] - 200).max() <= 1


def test_resizing_is_antialiased(tmp_path):
    """A one-pixel checkerboard shrunk tenfold is even grey; nearest or bilinear sampling would leave black or white."""
    board = (np.indices((480, 480)).sum(axis=0) % 2 * 255).astype(np.uint8)
    write_image(tmp_path / "train" / "happy" / "a.png", board)
    image = load_dataset(tmp_path, "train").images.numpy().astype(int)
    assert np.abs(image - 127).max() <= 4


def test_wrong_folders_are_one_sentence(csv, tmp_path):
    root = tmp_path / "folders"
    for name in ("angry", "sad"):
        write_image(root / "train" / name / "a.png", random_faces(1)[0])
    (root / "test" / "sad").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"Split 'test' of .*folders has no images"):
        load_dataset(root, "test")
    with pytest.raises(ValueError, match=r"holds no <split>/<class> folders but angry, sad; give the folder above"):
        load_dataset(root / "train", "train")
    with pytest.raises(ValueError, match=r"holds no <split>/<class> folders but a\.png"):
        available_splits(root / "train" / "sad")
    with pytest.raises(ValueError, match=r"is a folder, and FER\+ votes belong to the rows of a CSV"):
        load_dataset(root, "train", "ferplus", csv)
    whole = (root / "train" / "sad" / "a.png").read_bytes()
    for content in (b"text", b"", whole[: len(whole) // 2]):
        (root / "train" / "sad" / "b.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"sad/b\.png cannot be read as an image .*; replace or remove it"):
            load_dataset(root, "train")
    # Pillow would start Ghostscript for it, whatever its name.
    (root / "train" / "sad" / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ValueError, match=r"sad/b\.png cannot be read as an image \(cannot identify image file"):
        load_dataset(root, "train")


# Holding out, duplicates


def classes_dataset(counts: list[int]) -> FaceDataset:
    """Rows told apart by their first pixels; classes mixed."""
    classes = [index for index, count in enumerate(counts) for _ in range(count)]
    random.Random(0).shuffle(classes)
    images = torch.zeros(len(classes), 48, 48, dtype=torch.uint8)
    images[:, 0, 0] = torch.arange(len(classes)) % 256
    images[:, 0, 1] = torch.arange(len(classes)) // 256
    return FaceDataset(images, torch.eye(len(counts))[classes], tuple(f"c{i}" for i in range(len(counts))))


def row_numbers(dataset: FaceDataset) -> list[int]:
    return (dataset.images[:, 0, 0].int() + 256 * dataset.images[:, 0, 1].int()).tolist()


def test_hold_out_is_stratified_disjoint_and_repeatable():
    dataset = classes_dataset([400, 100, 30, 3, 1, 0])
    train, validation = hold_out(dataset, 0.1, seed=3)
    assert validation.class_indices.bincount(minlength=6).tolist() == [40, 10, 3, 1, 0, 0]
    assert train.class_indices.bincount(minlength=6).tolist() == [360, 90, 27, 2, 1, 0]
    assert sorted(row_numbers(train) + row_numbers(validation)) == list(range(534))
    assert row_numbers(train) == sorted(row_numbers(train))
    assert row_numbers(hold_out(dataset, 0.1, seed=3)[1]) == row_numbers(validation)
    assert row_numbers(hold_out(dataset, 0.1, seed=4)[1]) != row_numbers(validation)
    assert hold_out(dataset, 0.999)[0].class_indices.bincount(minlength=6).tolist() == [1, 1, 1, 1, 1, 0]
    position = torch.tensor(row_numbers(validation)).float().mean()
    assert 534 * 0.35 < position < 534 * 0.65


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 10, float("nan")])
def test_hold_out_refuses_fractions_outside_0_to_1(fraction):
    with pytest.raises(ValueError, match="give a number between 0 and 1"):
        hold_out(classes_dataset([4, 4]), fraction)


def test_hold_out_needs_two_rows_of_a_class():
    with pytest.raises(ValueError, match="has 2 rows and no class with two"):
        hold_out(classes_dataset([1, 1]))


def test_duplicates_of_another_split_are_dropped():
    faces = random_faces(6)
    almost = faces[1].copy()
    almost[47, 47] ^= 1
    train = FaceDataset(torch.from_numpy(faces[:3]), torch.eye(2)[[0, 1, 0]], ("a", "b"))
    rows = np.stack([faces[3], faces[0], almost, faces[3], faces[2]])
    test = FaceDataset(torch.from_numpy(rows), torch.eye(2)[[0, 1, 1, 0, 0]], ("a", "b"))
    unseen = without_duplicates_of(test, train)
    # Labels do not matter, one grey level does, and repeats within the split stay.
    np.testing.assert_array_equal(unseen.images.numpy(), np.stack([faces[3], almost, faces[3]]))
    assert unseen.class_indices.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="All 3 rows also stand in the other data set"):
        without_duplicates_of(train, train)


def test_other_prints_of_a_photo_are_recognised_and_other_people_are_not():
    # 100 people of Labeled Faces in the Wild, one photo each, enlarged from 25 pixels.
    faces = [
        Image.fromarray((255 * face).astype(np.uint8)).resize((48, 48)) for face in skimage.data.lfw_subset()[:100]
    ]

    def compressed(face: Image.Image) -> Image.Image:
        face.save(stream := io.BytesIO(), "JPEG", quality=20)
        return Image.open(stream)

    prints = (
        lambda face: ImageEnhance.Brightness(face).enhance(0.7),
        lambda face: ImageEnhance.Contrast(face).enhance(0.6),
        lambda face: face.resize((36, 36)).resize((48, 48)),
        compressed,
    )
    changed = [prints[index % len(prints)](face) for index, face in enumerate(faces[:50])]

    def dataset(faces: list[Image.Image]) -> FaceDataset:
        return FaceDataset(torch.from_numpy(np.stack(faces)), torch.eye(2)[[0] * len(faces)], ("a", "b"))

    assert photos_not_in(dataset(faces), dataset(changed)).tolist() == [False] * 50 + [True] * 50
    # A face without structure is like no other, but still itself.
    flat = dataset([Image.new("L", (48, 48), grey) for grey in (0, 128)])
    assert photos_not_in(flat, dataset(faces)).tolist() == [True, True]
    assert photos_not_in(flat, flat.subset([1])).tolist() == [True, False]


# Garbage: whatever a file or folder holds, faces or one sentence come out


def garbled(text: str, changes: list[tuple[int, bytes]]) -> bytes:
    content = bytearray(text.encode())
    for place, piece in changes:
        at = place % (len(content) + 1)
        content[at : at + len(piece)] = piece
    return bytes(content)


PIECES = st.sampled_from(
    [b"", b"\0", b"\n", b'"', b",", b" ", b"-", b"nan", b"1e999", b"\xff\xfe", b"\xf0\x9d\x9f\x9b", b"9" * 400]
)
CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.one_of(PIECES, st.binary(max_size=8))), max_size=6)
READING = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def assert_faces_or_one_sentence(read, name: str) -> None:
    try:
        dataset = read()
    except ValueError as error:
        text = str(error)
    else:
        assert isinstance(dataset, FaceDataset) and len(dataset)
        return
    assert name in text and "\n" not in text and len(text) < 600, text
    assert text.endswith("."), text


@READING
@given(changes=CHANGES, cut=st.integers(0, 40_000))
@example(changes=[(21, b"nan")], cut=0)  # over the header's end: the first row's pixels become its emotion
def test_a_garbled_csv_is_read_or_refused_in_one_sentence(tmp_path, changes, cut):
    file = tmp_path / "garbled.csv"
    text = csv_text(random_faces(3), [0, 1, 2], ["Training"] * 3)
    file.write_bytes(garbled(text, changes)[: cut or None])
    assert_faces_or_one_sentence(lambda: load_dataset(file, "train"), "garbled.csv")


@READING
@given(changes=CHANGES)
def test_garbled_votes_are_read_or_refused_in_one_sentence(tmp_path, csv, changes):
    file = write_votes(tmp_path, [(usage, "a.png", [0, 9, 1] + [0] * 7) for usage in USAGE])
    file.write_bytes(garbled(file.read_text(), changes))
    assert_faces_or_one_sentence(lambda: load_dataset(csv, "train", "ferplus", file), ".csv")


@READING
@given(
    st.binary(max_size=300),
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=8)), max_size=6),
    st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"]),
)
def test_a_garbled_picture_of_a_folder_is_read_or_refused_in_one_sentence(tmp_path, noise, changes, form):
    folder = tmp_path / "faces" / "train"
    stream = io.BytesIO()
    Image.fromarray(random_faces(1)[0]).save(stream, form)
    for name, content in {"angry": stream.getvalue(), "sad": noise}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for place, piece in changes:
            at = place % (len(content) + 1)
            content = content[:at] + piece + content[at + len(piece) :]
        (folder / name / "a.png").write_bytes(content)
        if name == "angry":
            assert_faces_or_one_sentence(lambda: load_dataset(tmp_path / "faces", "train"), "a.png")
    assert_faces_or_one_sentence(lambda: load_dataset(tmp_path / "faces", "train"), "a.png")
    shutil.rmtree(folder)
