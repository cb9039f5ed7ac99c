"""From a picture to probabilities: what the network sees, what it says, and that neighbours do not matter."""

import dataclasses
import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LABELS
from PIL import Image

import emotion
from emotion.checkpoint import load_checkpoint, save_pth
from emotion.demo import make_dataset
from emotion.faces import FaceDetector, crop_face
from emotion.labels import FERPLUS_LABELS
from emotion.predict import DEFAULT_CHECKPOINT, EmotionPredictor, load_and_predict_48x48_grayscale

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> EmotionPredictor:
    return EmotionPredictor.from_checkpoint(checkpoint)


def by_hand(checkpoint: Path, crop: np.ndarray) -> np.ndarray:
    """Probabilities of one grey crop: normalised, through the network alone, divided by the temperature, softmax."""
    model = load_checkpoint(checkpoint)
    with torch.no_grad():
        logits = model(torch.tensor((crop / 255 - 0.5) / 0.5, dtype=torch.float32).reshape(1, 1, 48, 48))[0]
    powers = np.exp(logits.double().numpy() / 1.7)
    return powers / powers.sum()


def values(probabilities: dict[str, float]) -> list[float]:
    return list(probabilities.values())


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_a_48x48_crop_is_used_as_it_is(
    mode: str, predictor: EmotionPredictor, checkpoint: Path, crops: np.ndarray
) -> None:
    crop = Image.fromarray(crops[0])
    # Pillow makes "P" from grey without loss only through a grey palette.
    crop = crop.convert(mode) if mode != "P" else crop.quantize(256)
    seen = np.array(crop.convert("L"))
    (prediction,) = predictor.predict(crop)
    expected = by_hand(checkpoint, seen)
    assert np.array_equal(prediction.crop, seen)
    assert values(prediction.probabilities) == pytest.approx(expected, abs=1e-5)
    assert tuple(prediction.probabilities) == LABELS
    assert prediction.emotion == LABELS[expected.argmax()]
    assert prediction.confidence == prediction.probabilities[prediction.emotion]
    assert (prediction.box, prediction.score) == ((0, 0, 48, 48), 1)


def test_the_test_network_tells_crops_apart(predictor: EmotionPredictor, crops: np.ndarray) -> None:
    """Else the comparisons in this file would say nothing."""
    rows = np.array([values(row) for row in predictor.classify(crops)])
    assert rows.std(axis=0).min() > 0.02


def test_a_crop_is_classified_alike_alone_and_in_any_company(predictor: EmotionPredictor, crops: np.ndarray) -> None:
    together = np.array([values(row) for row in predictor.classify(crops)])
    alone = np.array([values(predictor.classify(crop[None])[0]) for crop in crops])
    turned = np.array([values(row) for row in predictor.classify(crops[::-1])])[::-1]
    assert np.allclose(alone, together, rtol=0, atol=1e-5)
    assert np.allclose(turned, together, rtol=0, atol=1e-5)
    assert np.allclose(together.sum(axis=1), 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 100])
def test_the_shipped_network_answers_as_it_does_in_pytorch(count: int) -> None:
    predictor = EmotionPredictor.from_checkpoint()
    faces = make_dataset(count, seed=1).images.numpy()
    rows = np.array([values(row) for row in predictor.classify(faces)])
    with torch.inference_mode():
        logits = predictor.model(torch.from_numpy(faces[:, None] / 127.5 - 1).float())
    expected = (logits.double() / predictor.model.temperature).softmax(1).numpy()
    assert rows.shape == expected.shape == (count, len(FERPLUS_LABELS))
    assert count == 1 or expected.std(axis=0).max() > 0.1
    assert np.abs(rows - expected).max() < 1e-4


def test_no_crops_give_no_rows(predictor: EmotionPredictor) -> None:
    assert predictor.classify(np.empty((0, 48, 48), np.uint8)) == []


@pytest.mark.parametrize("shape", [(48, 48), (1, 48, 47), (1, 1, 48, 48)])
def test_crops_of_another_shape_are_refused(shape: tuple[int, ...], predictor: EmotionPredictor) -> None:
    with pytest.raises(ValueError, match=r"give uint8 of shape \(N, 48, 48\)"):
        predictor.classify(np.zeros(shape, np.uint8))


def test_float_crops_are_refused(predictor: EmotionPredictor) -> None:
    with pytest.raises(ValueError, match="crops are float64"):
        predictor.classify(np.zeros((1, 48, 48)))


def test_every_face_of_a_group_is_predicted_in_one_batch(
    predictor: EmotionPredictor, group: Image.Image, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, classify = [], predictor.classify
    monkeypatch.setattr(predictor, "classify", lambda crops: batches.append(len(crops)) or classify(crops))
    predictions = predictor.predict(group)
    assert batches == [3]
    # Drawn from right to left by size; faces sit in the upper middle of their squares.
    assert [prediction.box[0] // 160 for prediction in predictions] == [2, 1, 0]
    for face, prediction in zip(FaceDetector().detect(group), predictions, strict=True):
        crop = crop_face(group, face)
        assert (prediction.box, prediction.score) == (face.box, face.score)
        assert np.array_equal(prediction.crop, crop)
        assert values(prediction.probabilities) == pytest.approx(by_hand(checkpoint, crop), abs=1e-5)


def test_a_picture_without_a_face_gives_none(predictor: EmotionPredictor, scenery: Image.Image) -> None:
    assert predictor.predict(scenery) == []


def test_threads_get_what_they_would_get_alone(
    predictor: EmotionPredictor, portrait: Image.Image, group: Image.Image, crops: np.ndarray
) -> None:
    pictures = [portrait.resize((200, 200)), group.resize((320, 160)), *map(Image.fromarray, crops[:6])] * 2
    expected = [predictor.predict(picture) for picture in pictures[:8]] * 2
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(predictor.predict, pictures))
    for result, alone in zip(results, expected, strict=True):
        for face, same in zip(result, alone, strict=True):
            assert face.box == pytest.approx(same.box, abs=1e-3)
            assert face.probabilities == pytest.approx(same.probabilities, abs=1e-5)


RESTARTED = """
import json, sys, torch
from emotion import runtime
from emotion.predict import EmotionPredictor
runtime.THREADS = int(sys.argv[1])
torch.set_num_threads(runtime.THREADS)
predictor = EmotionPredictor.from_checkpoint()
faces = predictor.predict(sys.argv[2])
print(json.dumps([[*face.box, *face.probabilities.values()] for face in faces]))
"""


def test_the_answer_is_the_same_after_a_restart_on_other_threads_and_in_other_company(
    group: Image.Image, tmp_path: Path
) -> None:
    """With the shipped network; `pytest -s -k restart` prints the largest differences."""
    group.save(tmp_path / "group.png")
    shipped = EmotionPredictor.from_checkpoint()
    faces = shipped.predict(tmp_path / "group.png")
    here = np.array([[*face.box, *values(face.probabilities)] for face in faces])
    alone = np.array([values(shipped.classify(face.crop[None])[0]) for face in faces])
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(shipped.predict, [tmp_path / "group.png"] * 8))
    answers = {"one face at a time": np.hstack([here[:, :4], alone])}
    for same in at_once:
        answer = np.array([[*face.box, *values(face.probabilities)] for face in same])
        worst = answers.setdefault("8 calls on 4 threads", answer)
        answers["8 calls on 4 threads"] = np.where(np.abs(answer - here) > np.abs(worst - here), answer, worst)
    for threads in (1, 2):
        command = [sys.executable, "-c", RESTARTED, str(threads), str(tmp_path / "group.png")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        answers[f"restarted, threads: {threads}"] = np.array(json.loads(done.stdout))
    for name, answer in answers.items():
        assert answer.shape == here.shape == (3, 4 + len(FERPLUS_LABELS))
        pixels, shares = np.abs(answer - here)[:, :4].max(), np.abs(answer - here)[:, 4:].max()
        print(f"{name:<22} boxes {pixels:.1e} pixels, probabilities {shares:.1e}")
        assert pixels < 1e-3 and shares < 1e-5, name


def test_the_whole_picture_can_be_taken_for_a_face(
    predictor: EmotionPredictor, checkpoint: Path, crops: np.ndarray
) -> None:
    # Pixels of 2x2 in the centre square of a wide picture: averaging them gives the crop back.
    wide = np.full((96, 120), 7, np.uint8)
    wide[:, 12:108] = crops[1].repeat(2, axis=0).repeat(2, axis=1)
    prediction = predictor.predict_whole(Image.fromarray(wide))
    assert (prediction.box, prediction.score) == ((12, 0, 96, 96), 1)
    assert np.array_equal(prediction.crop, crops[1])
    assert values(prediction.probabilities) == pytest.approx(by_hand(checkpoint, crops[1]), abs=1e-5)


def test_predictions_cannot_be_changed(predictor: EmotionPredictor, crops: np.ndarray) -> None:
    (prediction,) = predictor.predict(crops[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.emotion = "joy"
    assert "crop" not in repr(prediction)


def test_a_prediction_reads_as_a_bar_chart() -> None:
    face = emotion.Prediction((0, 0, 48, 48), 1.0, "joy", 0.9, {"joy": 0.9, "calm": 0.1}, np.zeros((48, 48), np.uint8))
    assert str(face) == f"joy (90.0%)\n  joy   90.0% {'#' * 27}\n  calm  10.0% ###"


def test_one_call_classifies_the_most_prominent_face(
    predictor: EmotionPredictor, checkpoint: Path, group: Image.Image, tmp_path: Path
) -> None:
    largest = max(predictor.predict(group), key=lambda face: face.box[2] * face.box[3])
    single_file = save_pth(predictor.model, tmp_path / "model.pth")
    stream = io.BytesIO()
    group.save(stream, "PNG")
    for source, picture in ((checkpoint, group), (single_file, stream.getvalue())):
        name, confidence, probabilities = load_and_predict_48x48_grayscale(source, picture)
        assert (name, confidence) == (largest.emotion, pytest.approx(largest.confidence, abs=1e-5))
        assert probabilities == pytest.approx(largest.probabilities, abs=1e-5)


def test_one_call_on_a_picture_without_a_face_takes_it_whole_and_warns(
    predictor: EmotionPredictor, checkpoint: Path, scenery: Image.Image
) -> None:
    with pytest.warns(UserWarning, match="No face was found") as caught:
        name, confidence, probabilities = load_and_predict_48x48_grayscale(checkpoint, scenery)
    whole = predictor.predict_whole(scenery)
    assert (name, confidence, probabilities) == (whole.emotion, whole.confidence, whole.probabilities)
    assert [Path(warning.filename) for warning in caught] == [Path(__file__)]


def test_what_is_no_picture_is_refused(predictor: EmotionPredictor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a picture"):
        predictor.predict(b"not a picture")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        predictor.predict(tmp_path / "missing.jpg")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        EmotionPredictor.from_checkpoint(tmp_path / "missing.pth")


def test_the_shipped_checkpoint_is_found_from_anywhere() -> None:
    assert ROOT / "checkpoints" / "ferplus" == DEFAULT_CHECKPOINT
    assert EmotionPredictor.from_checkpoint().model.labels == FERPLUS_LABELS
