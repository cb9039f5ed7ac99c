"""The example faces, made from drawn ones: who is in a mean, that nobody shows, and what the files say."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from emotion.__main__ import main
from emotion.demo import draw_face
from emotion.examples import FACES, compose
from emotion.labels import FER2013_LABELS, FERPLUS_COLUMNS, FERPLUS_LABELS
from emotion.predict import DEFAULT_CHECKPOINT, EmotionPredictor

SHIPPED = DEFAULT_CHECKPOINT.parents[1] / "examples"


def drawn(label: str, count: int, seed: int = 0) -> np.ndarray:
    """Drawn faces under light spots of their own: without them they are as alike as copies."""
    rng = np.random.default_rng(seed)
    faces = np.stack([draw_face(label, rng) for _ in range(count)]).astype(np.float32)
    faces += 45 * np.stack([cv2.GaussianBlur(rng.normal(size=(48, 48)), (0, 0), 1.2) * 4 for _ in range(count)])
    return faces.clip(0, 255).astype(np.uint8)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def test_the_mean_shows_the_expression_but_no_single_face() -> None:
    faces = drawn("surprise", 60)
    composite = compose(faces)
    assert composite.image.shape == (48, 48)
    assert composite.image.dtype == np.uint8
    assert (composite.image.min(), composite.image.max()) == (0, 255)
    assert len(set(composite.members.tolist())) == FACES
    # What belongs to single faces has gone: the mean of sixty others is nearer than any face in it.
    assert correlation(composite.image, compose(drawn("surprise", 60, seed=1)).image) > composite.nearest_member
    assert max(correlation(composite.image, face) for face in faces) < 0.9


def test_faces_of_another_expression_are_left_out() -> None:
    """By chance, seven of the forty would be happy."""
    faces = np.concatenate([drawn("happy", 10), drawn("surprise", 50)])
    assert (compose(faces).members < 10).sum() <= 2


def test_copies_of_a_face_count_once() -> None:
    """Mirrored, brighter, or in another frame: none makes the forty full."""
    faces = drawn("neutral", 39)
    first = faces[0].astype(np.float32)
    zoomed = cv2.warpAffine(first, np.array([[1.08, 0, -0.9], [0, 1.08, -2.9]]), (48, 48), borderMode=1)
    copies = [first, first[:, ::-1], first * 0.6 + 70, np.roll(first, 1, axis=1), zoomed]
    with pytest.raises(ValueError, match=r"only \d+ of 44 faces differ; give at least 40 different ones"):
        compose(np.concatenate([faces, np.stack(copies).astype(np.uint8)]))
    compose(np.concatenate([faces, drawn("neutral", 5, seed=1)]))


@pytest.mark.parametrize("count", [0, 1, 39])
def test_too_few_faces_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"only {count} of {count} faces differ"):
        compose(drawn("sad", 40)[:count])


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Per emotion, drawn faces with made-up votes: 130 unanimous happy ones and ten that are only mostly so; of the
    other emotions 45 with a majority and ten without."""
    faces, votes = [], []
    for number, label in enumerate(FERPLUS_LABELS):
        column = next(name for name, emotion in FERPLUS_COLUMNS.items() if emotion == label)
        rival = "neutral" if label != "neutral" else "sadness"
        counts = [(10, 0)] * 130 + [(7, 3)] * 10 if label == "happy" else [(7, 3)] * 45 + [(5, 5)] * 10
        faces.append(drawn(label if label in FER2013_LABELS else "neutral", len(counts), seed=number))
        votes += [{column: own, rival: other} for own, other in counts]
    pixels = [" ".join(map(str, face.ravel())) for face in np.concatenate(faces)]
    folder = tmp_path_factory.mktemp("tables")
    data, votes_file = folder / "fer2013.csv", folder / "fer2013new.csv"
    pd.DataFrame({"emotion": 0, "pixels": pixels, "Usage": "Training"}).to_csv(data, index=False)
    table = pd.DataFrame(votes, columns=[*FERPLUS_COLUMNS, "unknown", "NF"]).fillna(0).astype(int)
    table.insert(0, "Image name", [f"fer{row:07}.png" for row in range(len(table))])
    table.insert(0, "Usage", "Training")
    table.to_csv(votes_file, index=False)
    return data, votes_file


def test_the_command_writes_a_picture_for_each_emotion(
    tables: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMOTION_CACHE", str(tmp_path / "cache"))
    data, votes = map(str, tables)
    for folder in ("first", "second"):
        assert main(["examples", "--data", data, "--votes", votes, "--output", str(tmp_path / folder)]) == 0
    files = sorted((tmp_path / "first").iterdir())
    assert [file.name for file in files] == sorted(f"{label}.png" for label in FERPLUS_LABELS)
    for file in files:
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()
        with Image.open(file) as image:
            assert (image.size, image.mode) == ((48, 48), "L")
            share = "all" if file.stem == "happy" else "at least 70%"
            assert f"mean of {FACES} different faces" in image.text["Description"]
            assert f"called {file.stem} by {share} of its FER+ votes" in image.text["Description"]
    out = capsys.readouterr().out
    assert out.count("angry ") == 2
    assert "70%" in out


def test_an_emotion_with_too_few_faces_is_named_and_nothing_is_written(
    tables: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMOTION_CACHE", str(tmp_path / "cache"))
    votes = pd.read_csv(tables[1])
    afraid = votes.index[votes["fear"] == 7][:10]
    votes.loc[afraid, ["fear", "neutral"]] = [3, 7]
    votes.to_csv(tmp_path / "votes.csv", index=False)
    output = tmp_path / "output"
    arguments = ["--data", str(tables[0]), "--votes", str(tmp_path / "votes.csv"), "--output", str(output)]
    assert main(["examples", *arguments]) == 2
    assert "error: fear: only 35 of 35 faces differ; give at least 40" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("label", FERPLUS_LABELS)
def test_the_shipped_examples_are_crops_and_say_what_they_are(label: str) -> None:
    with Image.open(SHIPPED / f"{label}.png") as image:
        assert (image.size, image.mode) == ((48, 48), "L")
        assert image.text["Description"].startswith("No real person: the mean of 40 different faces")


def test_the_shipped_network_names_the_clear_examples() -> None:
    """Not fear, which it mistakes, nor contempt, which is no class of it."""
    predictor = EmotionPredictor.from_checkpoint()
    clear = sorted(set(FER2013_LABELS) - {"fear"})
    assert [predictor.predict(SHIPPED / f"{label}.png")[0].emotion for label in clear] == clear
