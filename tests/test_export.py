"""The ONNX file answers as PyTorch does, says how to use it, and never half replaces another."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import LABELS
from PIL import Image

from emotion import demo
from emotion.__main__ import main
from emotion.checkpoint import load_checkpoint
from emotion.export import export_onnx
from emotion.labels import FERPLUS_LABELS
from emotion.model import EmotionCNN
from emotion.predict import DEFAULT_CHECKPOINT

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> EmotionCNN:
    return load_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def exported(model: EmotionCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(model, tmp_path_factory.mktemp("onnx") / "new" / "emotion.onnx")


@pytest.fixture(scope="module")
def shipped() -> EmotionCNN:
    """A trained network: an untrained one is too erratic to tell small errors from large ones."""
    return load_checkpoint(DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("onnx") / "int8.onnx"
    assert main(["export", str(DEFAULT_CHECKPOINT), "--onnx", str(file), "--int8"]) == 0
    return file


def run(file: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"faces": images})
    return probabilities


def metadata(file: Path) -> dict[str, str]:
    return onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map


def by_hand(model: EmotionCNN, images: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax of the logits over the temperature, in double precision."""
    with torch.inference_mode():
        powers = np.exp(model(torch.from_numpy(images)).double().numpy() / temperature)
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_probabilities_are_those_of_pytorch_at_any_batch_size(
    count: int, exported: Path, model: EmotionCNN, crops: np.ndarray
) -> None:
    images = (crops[:count, None] / 127.5 - 1).astype(np.float32)
    probabilities = run(exported, images)
    assert probabilities.dtype == np.float32
    assert np.abs(probabilities - by_hand(model, images, 1.7)).max() < 1e-4
    # Without the temperature it would be another answer.
    assert np.abs(probabilities - by_hand(model, images, 1.0)).max() > 1e-2


def test_the_file_says_how_to_use_it(exported: Path, quantised: Path, model: EmotionCNN, shipped: EmotionCNN) -> None:
    for file, network in ((exported, model), (quantised, shipped)):
        about = metadata(file)
        assert tuple(json.loads(about["labels"])) == network.labels
        assert float(about["temperature"]) == network.temperature
        assert int(about["image_size"]) == 48
        assert (float(about["mean"]), float(about["std"])) == (0.5, 0.5)
        session = onnxruntime.InferenceSession(file)
        for put, key in ((session.get_inputs(), "input"), (session.get_outputs(), "output")):
            (only,) = put
            assert about[key].startswith(f"{only.name}: float32 (N, ")
            assert only.type == "tensor(float)"
        assert session.get_inputs()[0].shape == ["N", 1, 48, 48]
        assert session.get_outputs()[0].shape == ["N", network.num_classes]


def test_every_key_of_the_metadata_is_documented(exported: Path) -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "onnx.md").read_text("utf-8"), re.M)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == metadata(exported).keys()


def test_the_graph_is_valid_and_modest(exported: Path, quantised: Path) -> None:
    for file in (exported, quantised):
        network = onnx.load(file)
        onnx.checker.check_model(network, full_check=True)
        assert [(entry.domain, entry.version) for entry in network.opset_import] == [("", 13)]
        assert "BatchNormalization" not in {node.op_type for node in network.graph.node}


def test_eight_classes_with_names_of_their_own(tmp_path: Path, crops: np.ndarray) -> None:
    torch.manual_seed(1)
    labels = FERPLUS_LABELS[::-1]
    model = EmotionCNN(8, labels=labels, temperature=0.6).train()
    file = export_onnx(model, str(tmp_path / "eight.onnx"))
    assert model.training
    images = (crops[:, None] / 127.5 - 1).astype(np.float32)
    assert np.abs(run(file, images) - by_hand(model.eval(), images, 0.6)).max() < 1e-4
    assert json.loads(metadata(file)["labels"]) == list(labels)


def test_the_same_network_gives_the_same_file(exported: Path, model: EmotionCNN, tmp_path: Path) -> None:
    assert export_onnx(model, tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_int8_is_smaller_and_nearly_the_same(quantised: Path, exported: Path, shipped: EmotionCNN) -> None:
    graph = onnx.load(quantised).graph
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    convolutions = [array for array in weights if array.ndim == 4]
    assert len(convolutions) == 12
    # Seven bits: with eight, processors without VNNI overflow.
    assert all(array.dtype == np.int8 and np.abs(array.astype(int)).max() <= 64 for array in convolutions)
    assert quantised.stat().st_size < exported.stat().st_size / 2
    # Other faces than it was calibrated with.
    faces = (demo.make_dataset(14, seed=1).images.numpy()[:, None] / 127.5 - 1).astype(np.float32)
    expected = by_hand(shipped, faces, shipped.temperature)
    assert expected.std(0).max() > 0.1
    assert 1e-4 < np.abs(run(quantised, faces) - expected).max() < 0.1


def test_a_file_survives_an_export_that_fails(exported: Path, model: EmotionCNN, tmp_path: Path) -> None:
    file = shutil.copy(exported, tmp_path)
    broken = EmotionCNN(3)
    torch.nn.init.constant_(broken.classifier[-1].bias, float("nan"))
    with pytest.raises(ValueError, match=r"is not written, .* up to nan from PyTorch's, more than 0.0001; use"):
        export_onnx(broken, file)
    assert Path(file).read_bytes() == exported.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["emotion.onnx"]


def test_int8_that_is_far_off_is_refused(model: EmotionCNN, tmp_path: Path) -> None:
    # Untrained and sharp as a step, the answer tips with the least rounding.
    sharp = EmotionCNN(3, temperature=0.01)
    sharp.load_state_dict(model.state_dict())
    faces = demo.make_dataset(16).images.numpy()
    with pytest.raises(ValueError, match="more than 0.2; use another checkpoint or float32"):
        export_onnx(sharp, tmp_path / "int8.onnx", faces)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "faces", [np.zeros((0, 48, 48), np.uint8), np.zeros((2, 48, 47), np.uint8), np.zeros((2, 48, 48))]
)
def test_calibration_faces_of_another_kind_are_refused(faces: np.ndarray, model: EmotionCNN, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"calibration faces are .*; give uint8 of shape \(N, 48, 48\)"):
        export_onnx(model, tmp_path / "int8.onnx", faces)


def test_a_folder_is_not_taken_for_a_file(model: EmotionCNN, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a file"):
        export_onnx(model, tmp_path)


def test_the_command_writes_both_formats(
    checkpoint: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pth, file = tmp_path / "model.pth", tmp_path / "model.onnx"
    assert main(["export", str(checkpoint), "--pth", str(pth), "--onnx", str(file)]) == 0
    assert capsys.readouterr().out == "".join(f"{checkpoint} is written to {name}.\n" for name in (pth, file))
    assert file.read_bytes() == exported.read_bytes()
    assert load_checkpoint(pth).labels == LABELS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to write; give --pth FILE, --onnx FILE or both."),
        (["--pth", "model.pth", "--int8"], "--int8 is for ONNX only; give --onnx FILE with it."),
        (["--onnx", "."], "is a folder; give the name of a file"),
        (["--onnx", "taken/model.onnx"], "taken"),
    ],
)
def test_wrong_usage_is_one_sentence(
    arguments: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file, not a folder")
    assert main(["export", str(checkpoint), *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_ten_lines_of_the_documentation_need_no_pytorch(
    exported: Path, checkpoint: Path, tmp_path: Path, crops: np.ndarray
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "onnx.md").read_text("utf-8"), re.S)
    assert sum(map(bool, example.splitlines())) == 10
    shutil.copy(exported, tmp_path / "emotion.onnx")
    Image.fromarray(crops[0]).save(tmp_path / "face.png")
    code = f"import sys\nsys.modules.update(torch=None, emotion=None)\n{example}"
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    # The documented way prints a dict.
    printed = json.loads(done.stdout.decode().replace("'", '"'))
    expected = by_hand(load_checkpoint(checkpoint), (crops[:1, None] / 127.5 - 1).astype(np.float32), 1.7)[0]
    assert tuple(printed) == LABELS
    assert list(printed.values()) == pytest.approx(expected, abs=1e-4)
