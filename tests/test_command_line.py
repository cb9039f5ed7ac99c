"""`python -m emotion`: what other tools rely on, mostly shown by one real process."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import HISTORY, LABELS
from PIL import Image

from emotion import demo
from emotion.__main__ import main
from emotion.checkpoint import load_checkpoint, save_checkpoint
from emotion.model import EmotionCNN

ROOT = Path(__file__).parents[1]


@dataclass
class Run:
    """What `main` did: exit status, standard output and standard error."""

    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> Run:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        return Run(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def album(
    tmp_path_factory: pytest.TempPathFactory,
    portrait: Image.Image,
    group: Image.Image,
    scenery: Image.Image,
    crops: np.ndarray,
) -> Path:
    """A folder of what people have."""
    folder = tmp_path_factory.mktemp("album")
    portrait.save(folder / "portrait.png")
    # A phone held on its side stores the picture turned and says so: 6 means "turn 90 degrees clockwise to view".
    exif = Image.Exif()
    exif[0x0112] = 6
    portrait.crop((0, 0, 512, 400)).rotate(90, expand=True).save(folder / "phone.jpg", quality=95, exif=exif)
    group.save(folder / "group.jpg", quality=95)
    scenery.save(folder / "scenery.jpg")
    (folder / "text.jpg").write_text("This is no picture.")
    Image.fromarray(crops[0]).save(folder / "crop.bmp")
    shutil.copy(folder / "portrait.png", folder / "wrongly named.txt")
    return folder


@pytest.fixture(scope="module")
def process(album: Path, checkpoint: Path) -> subprocess.CompletedProcess[str]:
    """One run over all sorts of images, from within their folder."""
    names = ["phone.jpg", "portrait.png", "text.jpg", "crop.bmp", "missing.png", "./scenery.jpg", "wrongly named.txt"]
    return subprocess.run(
        [sys.executable, "-m", "emotion", "predict", *names, "group.jpg", "--json", "--checkpoint", checkpoint],
        cwd=album,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def items(process: subprocess.CompletedProcess[str]) -> dict[str, dict]:
    """The items of the JSON list by image; standard output must hold nothing else."""
    return {item["image"]: item for item in json.loads(process.stdout)}


def test_json_has_an_item_per_image_in_argument_order(items: dict[str, dict]) -> None:
    names = ["phone.jpg", "portrait.png", "text.jpg", "crop.bmp", "missing.png", "./scenery.jpg", "wrongly named.txt"]
    assert list(items) == [*names, "group.jpg"]
    for item in items.values():
        assert list(item) == ["image", "faces", "error"]
        for face in item["faces"]:
            assert list(face) == ["box", "score", "emotion", "confidence", "probabilities"]
            assert len(face["box"]) == 4
            assert 0.5 < face["score"] <= 1
            assert tuple(face["probabilities"]) == LABELS
            assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-5)
            assert face["confidence"] == face["probabilities"][face["emotion"]] == max(face["probabilities"].values())


def test_a_bad_image_fails_alone_and_the_exit_status_tells(
    process: subprocess.CompletedProcess[str], items: dict[str, dict]
) -> None:
    assert process.returncode == 1
    assert {name for name, item in items.items() if item["error"] is not None} == {"text.jpg", "missing.png"}
    assert "'text.jpg' is not a picture" in items["text.jpg"]["error"]
    assert "'missing.png' does not exist" in items["missing.png"]["error"]
    assert items["text.jpg"]["faces"] == items["missing.png"]["faces"] == []
    assert "Traceback" not in process.stderr


def test_faces_are_counted(items: dict[str, dict]) -> None:
    assert {name: len(item["faces"]) for name, item in items.items() if item["error"] is None} == {
        "phone.jpg": 1,
        "portrait.png": 1,
        "crop.bmp": 1,
        "./scenery.jpg": 0,
        "wrongly named.txt": 1,
        "group.jpg": 3,
    }


def test_content_and_not_the_name_decides_what_a_file_is(items: dict[str, dict]) -> None:
    assert items["wrongly named.txt"]["faces"] == items["portrait.png"]["faces"]


def test_boxes_of_a_turned_photo_are_in_upright_pixels(items: dict[str, dict]) -> None:
    (upright,), (turned,) = items["portrait.png"]["faces"], items["phone.jpg"]["faces"]
    # The astronaut's head, as a person reads it off the 512x512 picture.
    for x, y, width, height in (upright["box"], turned["box"]):
        assert 170 < x < x + width < 280
        assert 50 < y < y + height < 210
    assert turned["box"] == pytest.approx(upright["box"], abs=6)


def test_a_crop_is_its_own_box(items: dict[str, dict], checkpoint: Path, crops: np.ndarray) -> None:
    (face,) = items["crop.bmp"]["faces"]
    assert (face["box"], face["score"]) == ([0, 0, 48, 48], 1)
    with torch.no_grad():
        logits = load_checkpoint(checkpoint)(torch.tensor(crops[0] / 127.5 - 1).float().view(1, 1, 48, 48))
    powers = np.exp(logits[0].double().numpy() / 1.7)
    assert list(face["probabilities"].values()) == pytest.approx(powers / powers.sum(), abs=1e-5)


def test_chatter_of_libraries_does_not_reach_standard_output(
    run, checkpoint: Path, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import emotion.predict

    def chatty(*arguments: object) -> np.ndarray:
        print("Loading weights from local directory")
        return crop(*arguments)

    crop = emotion.predict.crop_whole
    monkeypatch.setattr(emotion.predict, "crop_whole", chatty)
    done = run("predict", album / "crop.bmp", "--json", "--checkpoint", checkpoint)
    assert "Loading weights" in done.err
    assert [item["error"] for item in json.loads(done.out)] == [None]


def test_without_json_a_person_can_read_it(run, checkpoint: Path, album: Path, tmp_path: Path) -> None:
    exported = run("export", checkpoint, "--pth", tmp_path / "model.pth")
    assert exported.status == 0
    images = [album / name for name in ("text.jpg", "scenery.jpg", "crop.bmp")]
    done = run("predict", *images, "--checkpoint", tmp_path / "model.pth")
    assert done.status == 1
    assert done.err.count("\n") == 1
    assert "text.jpg' is not a picture" in done.err
    lines = done.out.splitlines()
    assert lines[0] == f"{images[1]}: no face found"
    assert lines[1].startswith(f"{images[2]}: face 1 of 1, 48x48 pixels at (0, 0): ")
    assert [line.split("%")[0].rsplit(maxsplit=1)[0].strip() for line in lines[2:]] == list(LABELS)


def test_a_folder_stands_for_its_pictures_and_those_below_it(
    run, checkpoint: Path, album: Path, tmp_path: Path, crops: np.ndarray
) -> None:
    (tmp_path / "below").mkdir()
    for number, crop in enumerate(crops):
        Image.fromarray(crop).save(tmp_path / ("below" if number % 2 else "") / f"{number}.PNG")
    (tmp_path / "notes.txt").write_text("No picture, and none by its name.")
    (tmp_path / ".hidden.png").write_text("A system's own.")
    done = run("predict", album / "crop.bmp", tmp_path, "--json", "--checkpoint", checkpoint)
    folder = json.loads(done.out)[1:]
    numbers = (0, 2, 4, 6, 8, *(f"below/{odd}" for odd in (1, 3, 5, 7)))
    assert [item["image"] for item in folder] == [str(tmp_path / f"{number}.PNG") for number in numbers]
    # Each has its own answer, whatever thread gave it.
    for item in folder[::4]:
        alone = run("predict", item["image"], "--json", "--checkpoint", checkpoint)
        assert json.loads(alone.out) == [item]
    (tmp_path / "empty").mkdir()
    none = run("predict", tmp_path / "empty", "--checkpoint", checkpoint)
    assert (none.status, none.err.count("\n")) == (2, 1) and "holds no picture; give" in none.err


def test_the_shipped_checkpoint_is_the_default(run, album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album)
    done = run("predict", "portrait.png", "--json")
    assert done.status == 0
    (face,) = json.loads(done.out)[0]["faces"]
    assert face["emotion"] == "happy"  # as anyone would say of her


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["predict"],
        ["predict", "a.png", "--unknown"],
        ["evaluate", "--data", "x", "--labels", "fer2013", "--split", "test"],
        ["evaluate", "--checkpoint", "c", "--data", "x", "--labels", "other", "--split", "test"],
        ["fly"],
    ],
)
def test_wrong_usage_exits_with_2(run, arguments: Sequence[str]) -> None:
    done = run(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("usage: python -m emotion")


def test_what_the_user_must_correct_is_one_line_and_exits_with_2(
    run, checkpoint: Path, album: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:-100])
    data = ("--data", tmp_path / "none.csv", "--labels", "fer2013", "--split", "test")
    for arguments, reason in (
        (("predict", album / "crop.bmp", "--json", "--checkpoint", tmp_path / "none"), "none' does not exist"),
        (("predict", album / "crop.bmp", "--json", "--checkpoint", damaged), "is damaged"),
        (("evaluate", "--checkpoint", checkpoint, *data), "none.csv does not exist"),
        (("export", tmp_path / "none", "--pth", tmp_path / "model.pth"), "none' does not exist"),
    ):
        done = run(*arguments)
        assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
        assert reason in done.err


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, crops: np.ndarray) -> Path:
    """A FER2013 file: six rows of the test split, three of another."""
    file = tmp_path_factory.mktemp("data") / "fer.csv"
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["emotion", "pixels", "Usage"])
        for index, crop in enumerate(crops):
            usage = "PublicTest" if index < 6 else "Training"
            writer.writerow([index % 7, " ".join(map(str, crop.ravel())), usage])
    return file


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    model = EmotionCNN()
    torch.nn.init.normal_(model.classifier[-1].weight, std=0.3)
    return save_checkpoint(model, tmp_path_factory.mktemp("checkpoints") / "seven")


def test_evaluate_measures_the_rows_of_one_split(
    run, seven: Path, labelled: Path, crops: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMOTION_CACHE", str(tmp_path))
    call = ("evaluate", "--checkpoint", seven, "--data", labelled, "--labels", "fer2013", "--split", "PublicTest")
    model = load_checkpoint(seven)
    images = torch.tensor(crops[:6, None] / 127.5 - 1).float()
    with torch.no_grad():
        plain, mirrored = torch.softmax(model(images), 1), torch.softmax(model(images.flip(3)), 1)
    # With fer2013's labels, votes are not even looked at.
    for arguments, expected in (((), plain), (("--tta", "--votes", "none.csv"), (plain + mirrored) / 2)):
        metrics = json.loads(run(*call, "--json", *arguments).out)
        assert metrics["rows"] == 6
        assert metrics["accuracy"] == pytest.approx((expected.argmax(1) == torch.arange(6)).float().mean().item())
        assert metrics["nll"] == pytest.approx(-expected.diagonal().log().mean().item(), abs=1e-4)
        assert {"balanced_accuracy", "ece", "per_class", "confusion"} <= metrics.keys()

    table = run(*call)
    assert table.status == 0
    assert "faces              6\n" in table.out
    assert [line.split()[0] for line in table.out.splitlines()[-7:]] == list(model.labels)


def test_the_full_report_is_printed_and_written(
    run, seven: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMOTION_CACHE", str(tmp_path / "cache"))
    call = ("evaluate", "--checkpoint", seven, "--data", labelled, "--labels", "fer2013", "--split", "PublicTest")
    plain, tta = (json.loads(run(*call, "--json", *more).out) for more in ((), ("--tta",)))
    # Another file, whose training split repeats the first two faces of the test split.
    seen = pd.read_csv(labelled).iloc[[0, 1, 8]].assign(Usage="Training", emotion=3)
    seen.to_csv(tmp_path / "seen.csv", index=False)
    folder = tmp_path / "new" / "report"
    done = run(*call, "--full", "--json", "--train-data", tmp_path / "seen.csv", "--output", folder)
    assert done.status == 0
    result = json.loads(done.out)
    parts = ["plain", "tta", "unseen", "new_photos", "clear_answer", "robustness"]
    assert [key for key in result if key not in plain | {"split": 0, "label_set": 0}] == parts
    # What there is without --full is there with it, too.
    assert {key: result[key] for key in plain} == plain == {key: result["plain"][key] for key in plain}
    assert {key: result["tta"][key] for key in tta} == tta
    mirrored = json.loads(run(*call, "--full", "--json", "--tta").out)
    assert {key: mirrored[key] for key in tta} == tta and mirrored["plain"] == result["plain"]
    assert (result["unseen"]["rows"], result["unseen"]["split"]) == (4, "PublicTest")
    assert result["unseen"]["confusion"][0] == result["unseen"]["confusion"][1] == [0] * 7
    assert (result["robustness"]["rows"], len(result["robustness"]["accuracy"])) == (6, 7)
    assert {file.name for file in folder.iterdir()} == {"metrics.json", "confusion.png", "reliability.png"}
    assert json.loads((folder / "metrics.json").read_text()) == {key: result[key] for key in parts}
    assert list(tmp_path.glob("*.png")) == []

    # For people, and against the training split of --data, which repeats none of the six faces.
    table = run(*call, "--full")
    assert table.status == 0
    assert re.search(r"^not seen in training +6 .*\nnor another print of it +6 ", table.out, re.MULTILINE)
    first_words = [line.split()[0].rstrip(",") for line in table.out.splitlines()[-7:]]
    assert first_words == list(result["robustness"]["accuracy"])


def test_the_full_report_does_without_training_faces(
    run, seven: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMOTION_CACHE", str(tmp_path / "cache"))
    table = pd.read_csv(labelled)
    table[table["Usage"] == "PublicTest"].to_csv(tmp_path / "test.csv", index=False)
    call = ("evaluate", "--checkpoint", seven, "--data", tmp_path / "test.csv", "--labels", "fer2013")
    done = run(*call, "--split", "PublicTest", "--full", "--json")
    assert "unseen" not in json.loads(done.out)
    refused = run(*call, "--split", "PublicTest", "--full", "--train-data", tmp_path / "test.csv")
    assert (refused.status, refused.out) == (2, "")
    assert "no split 'train'; give one of PublicTest" in refused.err
    refused = run(*call, "--split", "PublicTest", "--full", "--output", tmp_path / "test.csv")
    assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert f"Cannot write to {tmp_path / 'test.csv'}: File exists. Give another --output." in refused.err
    for option in ("--train-data", "--output"):
        refused = run(*call, "--split", "PublicTest", option, tmp_path / "other")
        assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert "add --full" in refused.err
    assert not (tmp_path / "other").exists()


def test_evaluate_on_ferplus_asks_for_votes(run, seven: Path, labelled: Path, tmp_path: Path) -> None:
    done = run("evaluate", "--checkpoint", seven, "--data", labelled, "--labels", "ferplus", "--split", "PublicTest")
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert "fer2013new.csv" in done.err


def test_export_writes_the_single_file_with_what_the_folder_knows(run, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "model.pth"
    assert run("export", checkpoint, "--pth", file).status == 0
    content = torch.load(file, weights_only=True)
    assert content["label_map"] == dict(enumerate(LABELS))
    assert content["training_history"] == HISTORY
    assert content["training_config"] == {"epochs": 2}
    assert content["best_val_acc"] == 75  # percent
    original = load_checkpoint(checkpoint)
    assert content["total_parameters"] == sum(parameter.numel() for parameter in original.parameters())
    for name, tensor in original.state_dict().items():
        assert torch.equal(content["model_state_dict"][name], tensor), name


@pytest.mark.parametrize(
    "metrics", [None, [], {"accuracy": 0.5}, *({"plain": {"accuracy": a}} for a in ("?", [1], True, 10**400, 71.0))]
)
def test_export_does_without_metadata_or_with_others(run, seven: Path, tmp_path: Path, metrics: Any) -> None:
    folder = shutil.copytree(seven, tmp_path / "foreign")
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    assert run("export", folder, "--pth", tmp_path / "model.pth").status == 0
    assert torch.load(tmp_path / "model.pth", weights_only=True)["best_val_acc"] is None


def test_drawn_faces_vary_and_can_be_told_apart() -> None:
    drawn = demo.make_dataset(420, seed=3)
    assert drawn.class_indices.bincount().tolist() == [60] * 7
    assert len({image.tobytes() for image in drawn.images.numpy()}) == 420
    assert torch.equal(drawn.images, demo.make_dataset(420, seed=3).images)
    assert not torch.equal(drawn.images, demo.make_dataset(420, seed=4).images)
    # A linear model on pixels, fitted to half of them, is far above chance (1/7) on the other half.
    pixels = drawn.images.double().reshape(420, -1)
    pixels = (pixels - pixels.mean(1, keepdim=True)) / pixels.std(1, keepdim=True)
    first, second = pixels[:210], pixels[210:]
    weights = torch.linalg.solve(first @ first.T + 300 * torch.eye(210), drawn.targets[:210].double() - 1 / 7)
    right = (second @ first.T @ weights).argmax(1) == drawn.class_indices[210:]
    assert right.double().mean() > 0.4


def test_an_unknown_expression_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="'contempt'; give one of angry, disgust"):
        demo.draw_face("contempt", np.random.default_rng())
    with pytest.raises(ValueError, match="at least 1 face"):
        demo.make_dataset(0)


def test_the_demo_goes_through_the_whole_loop_and_cleans_up(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real thing on fewer and smaller pictures.
    monkeypatch.setattr(demo, "FACES", (70, 7, 14))
    monkeypatch.setattr(demo, "CONFIG", replace(demo.CONFIG, epochs=1, image_sizes=(16,)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = run("demo")
    assert done.status == 0
    assert [line[:2] for line in done.out.splitlines() if line[:1].isdigit()] == ["1.", "2.", "3.", "4."]
    assert "70 faces to train on" in done.out
    assert "epoch 1/1" in done.out
    assert list(tmp_path.iterdir()) == []
