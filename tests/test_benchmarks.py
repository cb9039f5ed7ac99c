"""The comparisons count and measure what they say; how fast anything is, they find out themselves."""

import io
import json
import multiprocessing
import re
import sys
import venv
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import with_browser
from PIL import Image
from test_trainer import write_csv
from test_transfer import random_donor
from torch import nn

from benchmarks import live, others, page, prediction, recogniser, traditional, training, transfer
from benchmarks.mtcnn import PlainDetector
from emotion.checkpoint import load_checkpoint
from emotion.demo import make_dataset
from emotion.faces import FaceDetector
from emotion.follow import overlap
from emotion.model import EmotionCNN
from emotion.predict import DEFAULT_CHECKPOINT

PARAMETER_BYTES = 4 * 6_670_759


def test_the_traditional_network_is_the_one_of_the_original_comparison() -> None:
    counted = traditional.count("traditional")
    # VGG16's convolutions at 224x224: 3x3 kernels, channels in, channels out, side of the output.
    layers = ((3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56))
    layers += ((256, 256, 56), (256, 512, 28), (512, 512, 28), (512, 512, 28), *3 * ((512, 512, 14),))
    head = 25088 * 4096 + 4096 * 1024 + 1024 * 256 + 256 * 7
    unused = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    assert counted == {
        "parameters": 245_581_615,
        "used_parameters": 245_581_615 - unused,
        "multiply_adds": sum(9 * a * b * side**2 for a, b, side in layers) + head,
    }


def test_our_network_has_its_published_size() -> None:
    counted = traditional.count("ours")
    assert counted["parameters"] == counted["used_parameters"] == 6_670_759
    assert counted["multiply_adds"] == pytest.approx(193e6, rel=0.001)


def test_time_and_memory_are_measured_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # The traditional network would take half a minute and several gigabytes.
    monkeypatch.setattr(traditional, "NETWORKS", {"ours": EmotionCNN})
    ours = traditional.measure(2)["ours"]
    for task in traditional.TASKS:
        assert len(ours[task]["seconds"]) == 2
        assert all(0 < seconds < 60 for seconds in ours[task]["seconds"])
        assert ours[task]["net"] < ours[task]["peak"]
    # Weights, gradients and Adam's two averages, or the weights alone; the rest is small.
    assert 4 * PARAMETER_BYTES < ours["training"]["net"] < 20 * PARAMETER_BYTES
    assert PARAMETER_BYTES < ours["prediction"]["net"] < 4 * PARAMETER_BYTES


def test_the_table_compares_medians_and_shows_their_spread() -> None:
    task = {"net": 10e6, "peak": 100e6, "seconds": [0.003, 0.001, 0.002]}
    slow = {"net": 100e6, "peak": 200e6, "seconds": [0.1, 9.0, 0.2]}
    results = {
        "machine": "an abacus",
        "batch": 8,
        "ours": {"parameters": 25, "used_parameters": 25, "multiply_adds": 1e6, "training": task, "prediction": task},
        "traditional": {
            **{"parameters": 1000, "used_parameters": 500, "multiply_adds": 4e6},
            **{"training": slow, "prediction": slow},
        },
    }
    lines = traditional.table(results).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("|")}
    assert "1,000 | 25 | 97.5% less | 97% fewer" in cells["parameters"]
    assert "100 MB | 10 MB | 90.0% less | 90% less" in cells["memory in training, batch of 8, without the runtime"]
    assert "2.0 ms (1.0 to 3.0) | 99.0% less, 100 times faster | 75% faster" in cells["training, per face"]
    assert "Median of 3 alternating runs" in lines[-1] and "an abacus" in lines[-1]


def test_no_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        traditional.main(["--runs", "0"])
    assert "give at least 1" in capsys.readouterr().err


def test_three_starts_are_compared_on_equal_terms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("EMOTION_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(random_donor("resnet18").state_dict(), file)

    scratch, adapted, shuffled = (transfer.starting_network(start, "resnet18", 0) for start in transfer.STARTS)
    for name, module in adapted.named_modules():
        ours, plain = (model.get_submodule(name) for model in (shuffled, scratch))
        if isinstance(module, nn.Conv2d):
            assert not torch.equal(ours.weight, module.weight)
            assert torch.equal(ours.weight.flatten().sort().values, module.weight.flatten().sort().values)
        elif isinstance(module, nn.Linear):
            assert torch.equal(ours.weight, module.weight) and torch.equal(plain.weight, module.weight)

    arguments = ["--data", write_csv(tmp_path), "--backbone", "resnet18", "--seeds", 1, "--output", tmp_path / "runs"]
    arguments += ["--", "--epochs", 1, "--image-sizes", 16]
    assert transfer.main([*map(str, arguments)]) == 0
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert all(row.split()[0] == "1" and "start_from=" in row for row in rows)
    # A second time, nothing is left to do.
    assert transfer.main([*map(str, arguments)]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == rows
    assert len((tmp_path / "runs" / "log.jsonl").read_text().splitlines()) == 3
    # What is there is no answer to another question.
    assert transfer.main([*map(str, arguments), "--learning-rate", "0.01"]) == 2
    assert "holds a run with other learning_rate" in capsys.readouterr().err

    # A donor that cannot be had shows before anything is trained.
    without = ["--data", tmp_path / "fer2013.csv", "--backbone", "vgg16_bn", "--output", tmp_path / "other"]
    assert transfer.main([*map(str, without)]) == 1
    assert "transfer: The ImageNet weights of vgg16_bn could not be read" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    with pytest.raises(SystemExit, match="2"):
        transfer.main([*map(str, without), "--seeds", "0"])
    assert "argument --seeds: 0 is too few; give at least 1" in capsys.readouterr().err


@pytest.fixture(scope="module")
def crowds() -> list[tuple[Image.Image, list[tuple[int, int, int, int]]]]:
    return list(prediction.pictures(prediction.examples(), 3))


def test_the_fast_detector_finds_what_the_plain_one_finds(
    crowds: list, portrait: Image.Image, scenery: Image.Image
) -> None:
    plain, fast = PlainDetector(), FaceDetector()
    turned = [portrait.rotate(degrees, expand=True, fillcolor=(128, 128, 128)) for degrees in (-30, 20, 40)]
    overlaps = []
    for photo in (*(picture for picture, _ in crowds), portrait, portrait.resize((200, 200)), *turned, scenery):
        wanted, found = plain.detect(photo), fast.detect(photo)
        assert len(found) == len(wanted)
        overlaps += [prediction.best(face.box, [other.box for other in found]) for face in wanted]
    assert len(overlaps) > 36
    assert min(overlaps) > 0.6 and np.median(overlaps) > 0.95


def test_pictures_hold_the_faces_where_they_say(crowds: list) -> None:
    for picture, squares in crowds:
        assert len(squares) == 12
        found = [face.box for face in FaceDetector().detect(picture)]
        # Of the smallest and most tilted faces one or the other is missed.
        assert sum(prediction.best(square, found) > prediction.FOUND for square in squares) >= 11


def test_every_way_computes_the_same_network() -> None:
    model = load_checkpoint(DEFAULT_CHECKPOINT)
    faces = make_dataset(14, seed=1).images[:, None] / 127.5 - 1
    with torch.inference_mode():
        wanted = (model(faces).double() / model.temperature).softmax(1).numpy()
    for name, compute in prediction.ways(model).items():
        tolerance = {"int8": 0.1, "bfloat16": 0.1}.get(name, 1e-4)
        assert np.abs(compute(faces) - wanted).max() < tolerance, name


def test_the_tables_of_prediction_compare_medians() -> None:
    ways = ("eager", "fused", "bfloat16", "int8", "onnx", "predict")
    results = {
        "machine": "an abacus",
        "runs": 3,
        "data": True,
        "face": {
            "idle": {name: [0.009, 0.001, 0.01 / number] for number, name in enumerate(ways, 1)},
            "busy": {"eager": [0.1], "onnx": [0.02], "predict": [0.05]},
            "difference": dict.fromkeys(ways[:5], 0.0) | {"int8": 0.1},
            "accuracy": {"eager": 0.672, "onnx": 0.672, "int8": 0.67},
            "rows": 3589,
            "peak_share": 0.5,
        },
        "photo": {
            "seconds": {"plain": [0.1, 0.2, 0.3], "ours": [0.1, 0.05, 0.01]},
            "faces": 480,
            "found": {"plain": [399, 3], "ours": [400, 4]},
            "same_box": 0.99,
        },
        "folder": {"seconds": {"100": [5.0, 6.0, 9.0], "1000": [17.0, 24.0, 36.0]}, "peak": {"100": 8e8, "1000": 9e8}},
    }
    lines = prediction.table(results).splitlines()
    [onnx] = [line for line in lines if "ONNX Runtime, float32" in line]
    assert "2.0 ms (1.0 to 9.0) | 4.5 times | 20.0 ms (20.0 to 20.0) |  | 67.20% |" in onnx
    [int8] = [line for line in lines if "int8" in line]
    assert "3.6 times |  | 1e-01 | 67.00% |" in int8
    assert "| **now: 4.0 times as fast** | 50.0 ms (10.0 to 100.0) | 400 | 4 |" in lines
    # 900 pictures more take 12, 18 and 27 seconds more.
    assert "| pictures of one face each in a folder | 50.0 a second (33.3 to 75.0), 4.0 s after the start |" in lines
    assert "| memory at the peak, with 100 and with 1,000 of them | 800 MB, 900 MB |" in lines
    assert "3,589 rows" in lines[-1] and "50%" in lines[-1] and "PublicTest's faces" in lines[-1]


def test_all_figures_that_are_written_are_of_one_processor() -> None:
    """README and guide name it once for several of them; one name stands for processors with bfloat16 and without."""
    results = Path(__file__).parents[1].glob("benchmarks/results/*.json")
    [processor] = {json.loads(file.read_text())["machine"].split(",")[0] for file in results}
    assert re.fullmatch(r".+ (with|without) bfloat16", processor)


def test_neighbours_are_busy_only_meanwhile() -> None:
    with prediction.neighbours():
        assert len(multiprocessing.active_children()) >= 1
    assert not multiprocessing.active_children()


def test_cameras_are_answered_frame_by_frame(url: str) -> None:
    seen = live.watch(url, cameras=2, seconds=1)
    assert len(seen) == 2
    for answers in seen:
        assert answers and all(0 < seconds < 60 for seconds in answers)
        assert sum(answers[:-1]) < 1 <= sum(answers)


def test_the_frames_of_the_cameras_show_one_face_that_moves_little() -> None:
    assert len(set(live.clip())) == live.FRAMES
    boxes = []
    for frame in live.clip()[:6]:
        picture = Image.open(io.BytesIO(frame))
        [face] = FaceDetector().detect(picture)
        boxes.append(face.box)
    assert picture.size == (640, 480)
    assert all(0.5 < overlap(*pair) < 1 for pair in pairwise(boxes))


def test_the_table_of_the_cameras_shows_rates_delays_and_their_growth() -> None:
    four = [[0.1] * 30, [0.1] * 20 + [0.3] * 10, [0.2] * 30, [0.1] * 30]
    results = {"machine": "an abacus", "seconds": 3.0, "memory": [9e8, 7e8, 8e8]}
    results["cameras"] = {"1": [[[0.04] * 75]] * 3, "4": [four] * 3}
    lines = live.table(results).splitlines()
    assert "| 1 | 25.0 (25.0 to 25.0) | 25.0 to 25.0 | 40 ms | 40 ms | 1.00 |" in lines
    # 30 answers in 3, 5, 6 and 3 seconds; a quarter of the last third takes 0.3 instead of 0.1 or 0.2 seconds.
    assert "| 4 | 8.0 (8.0 to 8.0) | 5.0 to 10.0 | 100 ms | 300 ms | 1.50 |" in lines
    assert "800 MB (700 to 900)" in lines[-1]


@with_browser
def test_the_page_is_timed_as_a_visitor_waits() -> None:
    found = page.measure(runs=1, visitors=2)
    # Chromium is not counted, Python with PyTorch is, and never less than before.
    (parts,), (resident,) = found["parts"], found["memory"]
    sizes = [*(size for _, size in parts), resident]
    assert sizes[0] > 200e6 and max(sizes) < 2e9
    assert all(seconds > 0 for seconds, _ in parts)
    (first,), (waits,) = found["first"], found["waits"]
    assert len(waits) == 2 and 0 < min(waits) <= max(waits) < first
    assert len(page.table(found).splitlines()) == 2 + len(page.PARTS) + 4


def test_the_table_of_the_page_shows_medians_over_starts() -> None:
    parts = [[[float(run + part), 10**8 * (part + 1)] for part in range(len(page.PARTS))] for run in (2, 0, 1)]
    results = {"machine": "an abacus", "parts": parts, "first": [9.0, 7.0, 8.0]}
    results |= {"waits": [[0.1, 0.2], [0.3, 0.4], [0.5, 0.9]], "memory": [9e8, 7e8, 8e8]}
    lines = page.table(results).splitlines()
    assert "| PyTorch | 1.0 s (0.0 to 2.0) | 100 MB |" in lines
    assert "| 8.0 s (7.0 to 9.0) |" in lines[-4]
    assert "| 0.35 s (0.10 to 0.90) | **800 MB** |" in lines[-3]


def test_a_step_of_training_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = []
    monkeypatch.setattr(
        training, "EmotionCNN", lambda **options: networks.append(EmotionCNN(**options)) or networks[-1]
    )
    for plain, size in ((True, 48), (False, 32)):
        step = training.step(4, size, plain)
        before = networks[-1].features[0][0].weight.detach().clone()
        step()
        assert not torch.equal(networks[-1].features[0][0].weight, before)


def test_batches_are_drawn_from_all_faces_and_go_on_for_ever() -> None:
    draw = training.batches(100)
    shapes = {(tuple(images.shape), tuple(targets.shape)) for images, targets in (draw() for _ in range(3))}
    assert shapes == {((64, 1, 48, 48), (64, 7))}


def test_the_table_of_training_counts_the_recipe_as_it_spends_its_epochs() -> None:
    seconds = {"plain": [0.64] * 3, "32 pixels": [0.2, 0.16, 0.1], "40 pixels": [0.32] * 3, "48 pixels": [0.5] * 3}
    seconds |= {"batch 16": [0.2], "batch 32": [0.25], "batch 128": [1.0], "augmentation": [0.02], "one thread": [1.0]}
    seconds["matrix"] = [0.01]
    seconds |= {"1000 images": [0.01], "10000 images": [0.02], "30000 images": [0.03]}
    results = {"machine": "an abacus", "precision": "float32", "seconds": seconds, "processes": 90.0}
    lines = training.table(results).splitlines()
    assert "| plain: float32, 48 pixels, no augmentation | 640 ms (640 to 640) | 100 | 1.00 times |" in lines
    # 64 faces in 0.16, 0.16, 0.32 and 0.5 seconds.
    assert f"| **{256 / 1.14:.0f}** | **{256 / 114:.2f} times** |" in "\n".join(lines)
    assert "| faces per step | 16 | 32 | 64 | 128 | 64, one thread | 64, 2 processes that share the threads |" in lines
    assert "| faces a second | 80 | 128 | 128 | 128 | 64 | 90 |" in lines
    assert "from 30,000 and augmented takes 30.0 ms" in lines[-1]
    assert "Augmentation is 4.0%" in lines[-1]
    # 100 faces a second, of 193 million products thrice, where the machine makes 107,374 million.
    assert "at 54% of the rate" in lines[-1]


FER = """
import numpy as np

print("Loading the model ...")

class FER:
    def detect_emotions(self, image):
        print("1/1 [==============================]")
        height, width = image.shape[:2]
        return [{"box": np.array([0, 0, width, height], np.int32), "emotions": {"happy": np.float32(1)}}]
"""
"""Stands for the package, which needs an environment of its own: all of a picture is a face."""


def test_another_recogniser_is_asked_as_ours_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file, text in {"fer/__init__.py": "__version__ = '1.2'", "fer/fer.py": FER, "tensorflow.py": ""}.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text or "__version__ = '3.4'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(prediction, "PICTURES", 2)
    look, _ = recogniser.ours()
    with closing(others.Recogniser(sys.executable, "fer", tmp_path)) as fer:
        assert fer.versions.startswith("fer 1.2, TensorFlow 3.4, OpenCV ")
        counted = others.count(
            {"fer": fer, "ours": SimpleNamespace(look=look)}, prediction.examples(), 0, str(tmp_path)
        )
        assert fer.look([str(tmp_path / "0-1.png")] * 2) == [[[0, 0, 640, 480]]] * 2
        assert 10e6 < fer.peak() < 1000e6
        with pytest.raises(ValueError, match=r"cannot run fer \(AttributeError: 'NoneType' .* --help"):
            fer.look(["not there"])
    assert counted["all"] == 24 and 10 < counted["large"] < 24
    assert counted["found"]["fer"] == {"all": 0, "large": 0, "false": 2}
    assert counted["found"]["ours"] == {"all": 24, "large": counted["large"], "false": 0}


def test_an_environment_without_fer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    bare = tmp_path / "bare/bin/python"
    for python, why in ((bare, "ModuleNotFoundError: No module named 'cv2'"), ("/no/python", "No such file")):
        with pytest.raises(SystemExit, match="2"):
            others.main(["--python", str(python)])
        said = capsys.readouterr().err
        assert f"'{python}' cannot run fer ({why}" in said
        assert "python -m benchmarks.others --help" in said


def test_the_table_of_others_says_who_is_faster_and_who_finds_more() -> None:
    found = {"fer": {"all": 412, "large": 338, "false": 6}, "ours": {"all": 479, "large": 381, "false": 1}}
    results = {
        **{"machine": "an abacus", "versions": "fer 1.2", "data": True},
        "seconds": {
            "photo": {"fer": [0.3, 0.2, 0.9], "ours": [0.1, 0.05, 0.2]},
            "loop": {"fer": [4.8, 2.4, 2.4], "ours": [4.8, 4.8, 6.0]},
        },
        "faces": {"tilted": {"all": 480, "large": 381, "found": found}},
        "peak": {"fer": 500e6, "ours": 1000e6},
    }
    lines = others.table(results).splitlines()
    assert any("| 300 ms (200 to 900) | 100.0 ms (50.0 to 200.0) | 3.0 times as fast |" in line for line in lines)
    # 24 pictures in 2.4 and in 4.8 seconds.
    assert any("| 10.0 (5.0 to 10.0) | 5.0 (4.0 to 5.0) | 0.5 times as fast |" in line for line in lines)
    assert "| faces found of 480, tilted | 412 | 479 | |" in lines
    assert "| the same, of the 381 of 60 pixels and more | 338 | 381 | |" in lines
    assert "| false boxes, tilted | 6 | 1 | |" in lines
    assert "| memory of the process at the peak | 500 MB | 1,000 MB | 2.0 times as much |" in lines
    assert (
        "Median of 3 alternating runs" in lines[-1]
        and "an abacus; fer 1.2." in lines[-1]
        and "PublicTest's faces" in lines[-1]
    )
