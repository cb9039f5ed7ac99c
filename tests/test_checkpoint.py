"""Checkpoints: what is stored is what was trained, and what is damaged, foreign or hostile is refused."""

import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emotion.checkpoint import (
    load_checkpoint,
    load_metadata,
    load_training_state,
    save_checkpoint,
    save_pth,
    save_training_state,
)
from emotion.model import EmotionCNN

ROOT = Path(__file__).parents[1]
LABELS = ("joy", "anger", "naïve calm")


def bars(seed: int) -> tuple[Tensor, Tensor]:
    """Four noisy pictures of each of three classes: horizontal bars, vertical bars, a plain surface."""
    wave = torch.sin(torch.arange(48.0)).sign()
    patterns = torch.stack([wave.expand(48, 48), wave[:, None].expand(48, 48), torch.zeros(48, 48)])
    noise = torch.randn(12, 1, 48, 48, generator=torch.Generator().manual_seed(seed))
    return 0.5 * patterns.repeat(4, 1, 1)[:, None] + 0.3 * noise, torch.arange(12) % 3


@pytest.fixture(scope="module")
def model() -> EmotionCNN:
    """A network that a few steps of training have decided, with a temperature fitted afterwards."""
    torch.manual_seed(0)
    model = EmotionCNN(3, dropout_rate=0.3, labels=LABELS)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 0.5  # So that the statistics follow within a few steps.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for seed in range(8):
        images, targets = bars(seed)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    model.temperature = 1.3
    return model.eval()


@pytest.fixture(scope="module")
def saved(model: EmotionCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_checkpoint(model, tmp_path_factory.mktemp("saved") / "checkpoint")
    save_pth(model, folder.parent / "model.pth")
    return folder.parent


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "checkpoint", tmp_path / "checkpoint"))


@pytest.fixture
def file(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(saved / "model.pth", tmp_path / "model.pth"))


def stored_as(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in state.items()}


def assert_same_tensors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def assert_one_sentence(error: BaseException, *parts: object) -> None:
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    assert len(text) < 500
    for part in parts:
        assert str(part) in text


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- What is stored is what was trained


def test_folder_holds_half_weights_full_statistics_and_the_current_configuration(
    model: EmotionCNN, tmp_path: Path
) -> None:
    history = [{"epoch": 1, "loss": 0.1 + 0.2}]
    folder = save_checkpoint(model, tmp_path / "new" / "one", history=history, metrics={}, training_config={"lr": 1e-3})
    assert set(contents(folder)) == {
        "config.json",
        "model.safetensors",
        "history.json",
        "metrics.json",
        "training_config.json",
    }
    assert json.loads((folder / "config.json").read_text(encoding="utf-8")) == {
        "num_classes": 3,
        "dropout_rate": 0.3,
        "labels": list(LABELS),
        "temperature": 1.3,
    }
    assert_same_tensors(load_file(folder / "model.safetensors"), stored_as(model.state_dict()))
    assert [load_metadata(folder, name) for name in ("history", "metrics", "training_config")] == [
        history,
        {},
        {"lr": 1e-3},
    ]


def test_round_trip_through_the_folder(model: EmotionCNN, folder: Path, capsys: pytest.CaptureFixture) -> None:
    random = torch.get_rng_state()
    loaded = load_checkpoint(folder)
    assert torch.equal(torch.get_rng_state(), random)
    assert (loaded.labels, loaded.temperature, loaded.dropout_rate) == (LABELS, 1.3, 0.3)
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    widened = {name: t.float() if t.is_floating_point() else t for name, t in stored_as(model.state_dict()).items()}
    assert_same_tensors(dict(loaded.state_dict()), widened)
    with torch.inference_mode():
        images, _ = bars(seed=9)
        before, after = model.probabilities(images), loaded.probabilities(images)
    assert before.max() - before.min() > 0.5  # Otherwise the next line would say nothing.
    assert (before - after).abs().max() < 1e-3
    assert capsys.readouterr().out == ""


def test_saving_what_was_loaded_changes_nothing(folder: Path, tmp_path: Path) -> None:
    again = save_checkpoint(load_checkpoint(folder), tmp_path / "again")
    assert contents(again) == contents(folder)


def test_training_layouts_are_stored_as_plain_weights(model: EmotionCNN, folder: Path, tmp_path: Path) -> None:
    trained = load_checkpoint(folder).to(memory_format=torch.channels_last).train()
    assert contents(save_checkpoint(trained, tmp_path / "channels_last")) == contents(folder)
    assert trained.training


def test_metadata_not_given_stays(model: EmotionCNN, folder: Path) -> None:
    save_checkpoint(model, folder, history=[1])
    save_checkpoint(model, folder, metrics={"accuracy": 0.5})
    assert load_metadata(folder, "history") == [1]
    with pytest.raises(FileNotFoundError) as caught:
        load_metadata(folder, "training_config")
    assert_one_sentence(caught.value, folder / "training_config.json")
    with pytest.raises(ValueError, match="'model' is no metadata of a checkpoint; choose from history, metrics"):
        load_metadata(folder, "model")


def test_the_mixin_reads_our_folder(folder: Path) -> None:
    theirs, ours = EmotionCNN.from_pretrained(folder, strict=True), load_checkpoint(folder)
    assert (theirs.labels, theirs.temperature, theirs.dropout_rate) == (LABELS, 1.3, 0.3)
    assert_same_tensors(dict(theirs.state_dict()), dict(ours.state_dict()))


def test_we_read_the_mixins_folder(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = EmotionCNN(8, temperature=2.0).eval()
    model.save_pretrained(tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert (loaded.labels, loaded.temperature) == (model.labels, 2.0)
    assert_same_tensors(dict(loaded.state_dict()), dict(model.state_dict()))


# --- Nothing is written by halves


@pytest.mark.parametrize(("value", "part"), [(1e5, "float16 ends at 65504"), (float("nan"), "NaN, infinity")])
def test_weights_that_cannot_be_stored_are_refused(folder: Path, value: float, part: str) -> None:
    broken, before = load_checkpoint(folder), contents(folder)
    with torch.no_grad():
        broken.features[1][0].weight[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="features.1.0.weight") as caught:
        save_checkpoint(broken, folder, metrics={})
    assert_one_sentence(caught.value, part)
    assert contents(folder) == before


@pytest.mark.parametrize("value", [float("nan"), Path(), torch.zeros(1), {1, 2}])
def test_metadata_that_is_not_json_is_refused(model: EmotionCNN, folder: Path, value: object) -> None:
    before = contents(folder)
    with pytest.raises(ValueError, match="metrics is not plain JSON"):
        save_checkpoint(model, folder, metrics={"accuracy": value})
    with pytest.raises(ValueError, match="history is not plain JSON"):
        save_pth(model, folder / "model.pth", history=[value])
    assert contents(folder) == before


def test_a_temperature_that_cannot_be_loaded_is_not_saved(folder: Path) -> None:
    broken, before = load_checkpoint(folder), contents(folder)
    broken.temperature = float("nan")
    with pytest.raises(ValueError, match="temperature is nan"):
        save_checkpoint(broken, folder)
    assert contents(folder) == before


@pytest.mark.parametrize("kind", ["folder", "pth", "state"])
def test_a_write_that_fails_leaves_the_previous_files(model: EmotionCNN, folder: Path, kind: str) -> None:
    """The kernel refuses to let a file grow, as a full disk would."""
    save: Callable[[], object] = {
        "folder": lambda: save_checkpoint(model, folder, history=["new"]),
        "pth": lambda: save_pth(model, folder / "model.pth", history=["new"]),
        "state": lambda: save_training_state({"a": torch.rand(10**6)}, folder / "state.pt"),
    }[kind]
    save_checkpoint(model, folder, history=["old"])
    save_pth(model, folder / "model.pth", history=["old"])
    save_training_state({"a": torch.zeros(10**6)}, folder / "state.pt")
    before = contents(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    try:
        with pytest.raises((OSError, RuntimeError)):
            save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(folder) == before
    save()
    assert contents(folder) != before


@pytest.mark.parametrize("name", ["config.json", "training_config.json"])
def test_weights_take_their_place_last(model: EmotionCNN, tmp_path: Path, name: str) -> None:
    """A save that is cut between two files never leaves new weights without what belongs to them."""
    (tmp_path / name).mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError, match="Cannot write"):
        save_checkpoint(model, tmp_path, training_config={})
    assert not (tmp_path / "model.safetensors").exists()


def test_a_kill_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    program = """if True:
        import sys, torch
        from emotion.checkpoint import save_checkpoint, save_pth
        from emotion.model import EmotionCNN
        models = [EmotionCNN(), EmotionCNN()]
        for step in range(10**6):
            save_checkpoint(models[step % 2], "folder")
            save_pth(models[step % 2], "model.pth")
            if step == 1:
                print("ready", flush=True)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "ready\n"
        for pause in (0.0, 0.2, 0.13):
            time.sleep(pause)
            child.send_signal(signal.SIGSTOP)  # What another process sees at any moment, too.
            load_checkpoint(tmp_path / "folder")
            load_checkpoint(tmp_path / "model.pth")
            child.send_signal(signal.SIGCONT)
        child.kill()
        child.wait()
    assert load_checkpoint(tmp_path / "folder").num_classes == 7
    assert load_checkpoint(tmp_path / "model.pth").num_classes == 7


# --- Damaged, foreign and hostile folders


def cut(file: Path, keep: float) -> None:
    os.truncate(file, int(file.stat().st_size * keep))


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with open(file, "r+b") as opened:
        opened.seek(offset)
        opened.write(data)


def flip_bit(file: Path, at: float) -> None:
    """Flip the lowest mantissa bit of a stored value: still a finite weight."""
    offset = int(file.stat().st_size * at) // 2 * 2
    overwrite(file, offset, bytes([file.read_bytes()[offset] ^ 1]))


def claim(file: Path, shape: list[int], end: int) -> None:
    """A header whose first tensor claims far more than the file holds."""
    header = json.dumps({"features.0.0.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))


def replace_weights(**changes: Tensor | None) -> Callable[[Path], None]:
    """Rewrite a safetensors file, without its digest, with some tensors changed, added or (None) dropped."""

    def damage(file: Path) -> None:
        state = load_file(file)
        for name, tensor in changes.items():
            name = name.replace("__", ".")
            state.pop(name, None)
            if tensor is not None:
                state[name] = tensor
        save_file(state, file)

    return damage


NAN = torch.full((3,), float("nan"))
DAMAGED_WEIGHTS = {
    "empty": lambda file: file.write_bytes(b""),
    "cut in the header": lambda file: cut(file, 1e-4),
    "cut in the middle": lambda file: cut(file, 0.5),
    "cut by one byte": lambda file: os.truncate(file, file.stat().st_size - 1),
    "one byte longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "one bit of a weight": lambda file: flip_bit(file, 0.5),
    "one bit of the last weights": lambda file: flip_bit(file, 0.999),
    "header length of exabytes": lambda file: overwrite(file, 0, struct.pack("<Q", 2**63)),
    "tensor of terabytes": lambda file: claim(file, [10**6, 10**6], 4 * 10**12),
    "tensor larger than its data": lambda file: claim(file, [10**6, 10**6], 64),
    "text": lambda file: file.write_text("not weights"),
    "a pickle": lambda file: torch.save({"a": torch.zeros(1)}, file),
    "65 MiB": lambda file: os.truncate(file, 65 * 2**20),
    "missing tensor": replace_weights(features__0__1__running_mean=None),
    "unexpected tensor": replace_weights(extra=torch.zeros(1)),
    "wrong shape": replace_weights(features__0__0__weight=torch.zeros(32, 3, 3, 3)),
    "wrong number of classes": replace_weights(
        classifier__18__weight=torch.zeros(7, 128), classifier__18__bias=torch.zeros(7)
    ),
    "integers for weights": replace_weights(classifier__18__bias=torch.zeros(3, dtype=torch.int64)),
    "numbers with a part for a counter": replace_weights(features__0__1__num_batches_tracked=torch.tensor(1.5)),
    "NaN": replace_weights(classifier__18__bias=NAN),
    "infinity": replace_weights(classifier__18__bias=NAN.nan_to_num(float("inf"))),
    "infinite in float32": replace_weights(classifier__18__bias=torch.full((3,), 1e300, dtype=torch.float64)),
    "negative variance": replace_weights(features__0__1__running_var=torch.full((32,), -1.0)),
}


@pytest.mark.parametrize("damage", DAMAGED_WEIGHTS.values(), ids=DAMAGED_WEIGHTS.keys())
def test_damaged_weights_are_refused(folder: Path, damage: Callable[[Path], object]) -> None:
    file = folder / "model.safetensors"
    damage(file)
    with pytest.raises(ValueError, match="model.safetensors") as caught:
        load_checkpoint(folder)
    assert_one_sentence(caught.value, file)


def test_weights_without_a_digest_or_in_another_precision_are_accepted(folder: Path) -> None:
    """A fine-tuned copy that another tool wrote."""
    bias = torch.tensor([0.5, -0.25, 2.0], dtype=torch.bfloat16)
    replace_weights(classifier__18__bias=bias)(folder / "model.safetensors")
    loaded = load_checkpoint(folder).classifier[-1].bias
    assert torch.equal(loaded, bias.float())


GOOD = {"num_classes": 3, "dropout_rate": 0.3, "labels": ["a", "b", "c"], "temperature": 1.0}
BAD_CONFIGS = {
    "empty": "",
    "not JSON": "num_classes: 3",
    "not UTF-8": b"\xff\xfe{}",
    "cut": json.dumps(GOOD)[:-5],
    "a list": "[3]",
    "a number": "3",
    "nothing in it": "{}",
    "deeply nested": "[" * 10**5,
    "huge": " " * (5 * 2**20) + json.dumps(GOOD),
    "another library's": json.dumps({"architectures": ["ViT"], "hidden_size": 768}),
    "a billion classes": json.dumps(GOOD | {"num_classes": 10**9}),
    "other classes than the weights": json.dumps(GOOD | {"num_classes": 2, "labels": ["a", "b"]}),
    "classes as text": json.dumps(GOOD | {"num_classes": "3"}),
    "classes null": json.dumps(GOOD | {"num_classes": None}),
    "too few labels": json.dumps(GOOD | {"labels": ["a", "b"]}),
    "the same label twice": json.dumps(GOOD | {"labels": ["a", "b", "a"]}),
    "labels as one text": json.dumps(GOOD | {"labels": "abc"}),
    "labels as a number": json.dumps(GOOD | {"labels": 3}),
    "labels as an object": json.dumps(GOOD | {"labels": {"0": "a", "1": "b", "2": "c"}}),
    "nested labels": json.dumps(GOOD | {"labels": [["a"], ["b"], ["c"]]}),
    "dropout over one": json.dumps(GOOD | {"dropout_rate": 1.5}),
    "temperature NaN": json.dumps(GOOD | {"temperature": float("nan")}),
    "temperature zero": json.dumps(GOOD | {"temperature": 0}),
    "temperature of 400 digits": json.dumps(GOOD | {"temperature": 10**400}),
}


@pytest.mark.parametrize("text", BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_bad_configurations_are_refused(folder: Path, text: str | bytes) -> None:
    (folder / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=r"config.json|model.safetensors") as caught:
        load_checkpoint(folder)
    assert_one_sentence(caught.value.args[0][:400] + ".", folder)  # The value of 400 digits is named in full.
    assert "\n" not in str(caught.value)


def test_configuration_needs_the_number_of_classes_only(folder: Path) -> None:
    (folder / "config.json").write_text('{"num_classes": 3, "author": "someone"}')
    assert len(load_checkpoint(folder).labels) == 3


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_incomplete_folders_are_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_checkpoint(folder)
    assert_one_sentence(caught.value, folder / missing, "give a checkpoint folder, a .pth file or a Hub id")


@pytest.mark.parametrize(
    "name",
    ["nowhere", "./user/name", "a/b/c", "/user/name", "user/model.pth", "user/na me", "user/", "~/name", "", "a\0b/c"],
)
def test_missing_paths_are_named_without_asking_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist; give a checkpoint folder") as caught:
        load_checkpoint(name)
    assert_one_sentence(caught.value, repr(name))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_checkpoint(tmp_path / "user" / "name")


def test_a_revision_of_local_files_is_refused(folder: Path, file: Path) -> None:
    for path in (folder, file):
        with pytest.raises(ValueError, match="revision 'v1' is for the Hub") as caught:
            load_checkpoint(path, revision="v1")
        assert_one_sentence(caught.value, path)


# --- The single file


def plain(value: object) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(plain(key) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return type(value) in (str, int, float, bool, type(None), Tensor)


def test_pth_has_the_keys_of_the_original_in_plain_types(model: EmotionCNN, tmp_path: Path) -> None:
    file = save_pth(
        model, tmp_path / "new" / "a.pth", history={"val_acc": (1.5, 2.5)}, training_config={"lr": 0.1}, best_val_acc=66
    )
    content = torch.load(file, weights_only=True)
    assert plain(content)
    assert_same_tensors(content.pop("model_state_dict"), dict(model.state_dict()))
    assert content == {
        "model_config": {"num_classes": 3, "dropout_rate": 0.3, "labels": list(LABELS), "temperature": 1.3},
        "training_config": {"lr": 0.1},
        "label_map": dict(zip(range(3), LABELS, strict=True)),
        "training_history": {"val_acc": [1.5, 2.5]},
        "best_val_acc": 66.0,
        "total_parameters": 6_670_759 - 4 * 129,
    }
    loaded = load_checkpoint(str(file))
    assert (loaded.labels, loaded.temperature, loaded.training) == (LABELS, 1.3, False)
    assert_same_tensors(dict(loaded.state_dict()), dict(model.state_dict()))
    with pytest.raises(FileNotFoundError, match="is one file, without metrics.json"):
        load_metadata(file, "metrics")


@pytest.mark.parametrize("accuracy", [-1, 100.1, float("nan")])
def test_an_impossible_accuracy_is_refused(model: EmotionCNN, tmp_path: Path, accuracy: float) -> None:
    with pytest.raises(ValueError, match="best_val_acc is .*; give a percentage"):
        save_pth(model, tmp_path / "a.pth", best_val_acc=accuracy)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("label_map", "labels"),
    [
        (None, ("class 0", "class 1", "class 2")),
        ({2: "c", 0: "a", 1: "b"}, ("a", "b", "c")),
        ({"c": 2, "a": 0, "b": 1}, ("a", "b", "c")),
    ],
)
def test_the_originals_file_is_read(model: EmotionCNN, tmp_path: Path, label_map: dict, labels: tuple) -> None:
    """Only weights and configuration, the configuration with keys of its own, labels in either direction."""
    content: dict[str, Any] = {
        "model_state_dict": model.state_dict(),
        "model_config": {"num_classes": 3, "dropout_rate": 0.5, "input_size": (48, 48)},
    }
    torch.save(content | ({"label_map": label_map} if label_map else {}), tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert (loaded.labels, loaded.temperature) == (labels, 1.0)
    assert_same_tensors(dict(loaded.state_dict()), dict(model.state_dict()))


class Executes:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_executes_code_is_refused_and_not_run(model: EmotionCNN, tmp_path: Path, zipped: bool) -> None:
    marker, file = tmp_path / "it ran", tmp_path / "evil.pth"
    content = {"model_state_dict": model.state_dict(), "model_config": GOOD, "training_config": Executes(marker)}
    if zipped:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(Executes(marker)))
    for load in (load_checkpoint, load_training_state):
        with pytest.raises(ValueError, match="it could execute code") as caught:
            load(file)
        assert_one_sentence(caught.value, file)
    assert not marker.exists()
    # The trap is real: the ordinary way of loading springs it.
    if zipped:
        torch.load(file, weights_only=False)
    else:
        pickle.loads(file.read_bytes())
    assert marker.exists()


def bomb(file: Path) -> None:
    """A few megabytes on disk, more than 512 MiB unpacked."""
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for index in range(33):
            archive.writestr(f"archive/data/x{index}", bytes(2**24))


DAMAGED_FILES: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: cut(file, 0.9),
    "one bit of a weight": lambda file: flip_bit(file, 0.5),
    "text": lambda file: file.write_text("not weights"),
    "another zip": lambda file: zipfile.ZipFile(file, "w").close(),
    "before PyTorch 1.6": lambda file: torch.save({"a": 1}, file, _use_new_zipfile_serialization=False),
    "bomb": bomb,
    "a tensor": lambda file: torch.save(torch.zeros(3), file),
    "bare weights": lambda file: torch.save(load_checkpoint(file).state_dict(), file),
}
BAD_ENTRIES: dict[str, dict[str, Any]] = {
    "no configuration": {"model_config": None},
    "weights in a list": {"model_state_dict": [1, 2]},
    "a billion classes": {"model_config": {"num_classes": 10**9}},
    "label map with a gap": {"label_map": {0: "a", 1: "b", 3: "c"}},
    "label map without numbers": {"label_map": {"a": "b"}},
    "label map in a list": {"label_map": ["a", "b", "c"]},
    "label map of other length": {"label_map": {0: "a", 1: "b"}},
}
BAD_TENSORS: dict[str, object] = {
    "a number": 3.0,
    "sparse": torch.zeros(3).to_sparse(),
    "complex": torch.zeros(3, dtype=torch.complex64),
    "on the meta device": torch.zeros(3, device="meta"),
    "a zero repeated to terabytes": torch.zeros(1).expand(10**12),
    "NaN": NAN,
}


@pytest.mark.parametrize("damage", DAMAGED_FILES.values(), ids=DAMAGED_FILES.keys())
def test_damaged_files_are_refused(file: Path, damage: Callable[[Path], object]) -> None:
    damage(file)
    with pytest.raises(ValueError, match="model.pth") as caught:
        load_checkpoint(file)
    assert_one_sentence(caught.value, file)


@pytest.mark.parametrize("entries", BAD_ENTRIES.values(), ids=BAD_ENTRIES.keys())
def test_files_with_bad_entries_are_refused(model: EmotionCNN, tmp_path: Path, entries: dict) -> None:
    file = tmp_path / "a.pth"
    torch.save({"model_state_dict": model.state_dict(), "model_config": {"num_classes": 3}} | entries, file)
    with pytest.raises(ValueError, match="a.pth") as caught:
        load_checkpoint(file)
    assert_one_sentence(caught.value, file)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("value", BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_files_with_bad_tensors_are_refused(model: EmotionCNN, tmp_path: Path, value: object) -> None:
    file = tmp_path / "a.pth"
    state = dict(model.state_dict()) | {"classifier.18.bias": value}
    torch.save({"model_state_dict": state, "model_config": GOOD}, file)
    with pytest.raises(ValueError, match="classifier.18.bias") as caught:
        load_checkpoint(file)
    assert_one_sentence(caught.value, file)


# --- The state of a training


def test_training_state_round_trip(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {
        "epoch": 3,
        "model": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "best": None,
        "history": [{"loss": 0.5}],
    }
    file = save_training_state(state, tmp_path / "new" / "state.pt")
    loaded = load_training_state(file)
    assert_same_tensors(loaded["model"], layer.state_dict())
    assert torch.equal(loaded["random"], state["random"])
    assert (loaded["epoch"], loaded["best"], loaded["history"]) == (3, None, [{"loss": 0.5}])
    momentum = loaded["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, optimizer.state[layer.weight]["momentum_buffer"])
    assert list(file.parent.iterdir()) == [file]


def test_training_state_that_could_not_be_read_back_is_refused_when_saved(tmp_path: Path) -> None:
    file = save_training_state({"epoch": 1}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="tensors and plain values only") as caught:
        save_training_state({"epoch": 2, "path": tmp_path}, file)
    assert_one_sentence(caught.value, file)
    assert load_training_state(file) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_missing_or_damaged_training_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        load_training_state(tmp_path / "state.pt")
    assert_one_sentence(missing.value, tmp_path / "state.pt")
    file = save_training_state({"weights": torch.zeros(10**4)}, tmp_path / "state.pt")
    cut(file, 0.5)
    with pytest.raises(ValueError, match="is damaged") as damaged:
        load_training_state(file)
    assert_one_sentence(damaged.value, file)


# --- The Hub


class Hub(ThreadingHTTPServer):
    """The Hub's file routes on the loopback interface: repository -> file name -> content."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.requested: list[str] = []
        super().__init__(("127.0.0.1", 0), HubHandler)


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        user, name, _, revision, file = self.path.lstrip("/").split("/", 4)
        self.server.requested.append(f"{user}/{name}/{file}")
        files = self.server.repositories.get(f"{user}/{name}")
        if files is None:
            self.answer(404, error="RepoNotFound")
        elif name == "gated":
            self.answer(403, error="GatedRepo")
        elif revision not in ("main", "v1", "c" * 40):
            self.answer(404, error="RevisionNotFound")
        elif file not in files:
            self.answer(404, error="EntryNotFound")
        else:
            self.answer(200, files[file])

    do_GET = do_HEAD

    def answer(self, status: int, content: bytes = b"", error: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{abs(hash(content))}"')
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    good = contents(save_checkpoint(load_checkpoint(folder), folder, metrics={"accuracy": 0.5}))
    repositories = {
        "someone/faces": good,
        "someone/gated": good,
        "someone/pickled": {"config.json": good["config.json"], "pytorch_model.bin": b"a pickle"},
        "someone/foreign": {"config.json": b'{"architectures": ["ViT"]}', "model.safetensors": b""},
        "someone/damaged": good | {"model.safetensors": good["model.safetensors"][:-1]},
    }
    with Hub(repositories) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def load_in_another_process(endpoint: str, folder: Path, calls: list[dict]) -> list[tuple[Any, float]]:
    """Result and seconds of each call, in a process that finds the Hub at `endpoint` when it imports its library."""
    program = """if True:
        import json, sys, time
        from emotion.checkpoint import load_checkpoint, load_metadata
        for call in json.load(sys.stdin):
            started = time.monotonic()
            try:
                if "name" in call:
                    result = load_metadata(**call)
                else:
                    model = load_checkpoint(**call)
                    result = [model.labels, model.temperature, model.classifier[-1].bias.sum().item()]
            except (FileNotFoundError, ValueError) as error:
                result = f"{type(error).__name__}: {error}"
            print(json.dumps([result, time.monotonic() - started]))
    """
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(calls),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_loading_from_the_hub(hub: Hub, folder: Path, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    (tmp_path / "local").mkdir()
    save_checkpoint(EmotionCNN(), tmp_path / "local" / "faces")
    hub.repositories["local/faces"] = hub.repositories["someone/faces"]
    config = hub.repositories["someone/faces"]["config.json"]
    hub.repositories["someone/long"] = {"config.json": bytes(4 * 2**20) + config}
    hub.repositories["someone/heavy"] = {"config.json": config, "model.safetensors": bytes(65 * 2**20)}
    answers = load_in_another_process(
        endpoint,
        tmp_path,
        [
            {"path_or_hub_id": "someone/faces"},
            {"path_or_hub_id": "someone/faces", "revision": "v1"},
            {"path_or_hub_id": "someone/faces", "name": "metrics"},
            {"path_or_hub_id": "local/faces"},
            {"path_or_hub_id": "someone/faces", "revision": "v2"},
            {"path_or_hub_id": "checkpoints/fer2013"},
            {"path_or_hub_id": "someone/gated"},
            {"path_or_hub_id": "someone/pickled"},
            {"path_or_hub_id": "someone/foreign"},
            {"path_or_hub_id": "someone/damaged"},
            {"path_or_hub_id": "someone/long"},
            {"path_or_hub_id": "someone/heavy"},
            {"path_or_hub_id": "someone/faces"},
        ],
    )
    good, pinned, metrics, local, revision, missing, gated, pickled, foreign, damaged, long, heavy, cached = (
        result for result, _ in answers
    )
    bias = load_checkpoint(folder).classifier[-1].bias.sum().item()
    assert good == pinned == cached == [list(LABELS), 1.3, bias]
    assert metrics == {"accuracy": 0.5}
    assert local[0] == list(EmotionCNN().labels)
    assert not any(request.startswith("local/") for request in hub.requested)
    for text, part in (
        (revision, "has no revision 'v2'"),
        (
            missing,
            "no local folder or file is named 'checkpoints/fer2013', and on the Hub no such repository is visible",
        ),
        (gated, "gated; ask for access"),
        (pickled, "has no model.safetensors"),
    ):
        assert_one_sentence(FileNotFoundError(text), "FileNotFoundError: ", part)
    assert_one_sentence(ValueError(foreign), "ValueError: ", "config.json", "someone--foreign")
    assert "someone/foreign/model.safetensors" not in hub.requested  # Not even downloaded.
    assert_one_sentence(ValueError(damaged), "ValueError: ", "model.safetensors", "someone--damaged")
    assert not any(request.endswith(".bin") for request in hub.requested)
    for text, name in ((long, "config.json"), (heavy, "model.safetensors")):
        assert_one_sentence(ValueError(text), f"ValueError: {name} of 'someone/", "nothing was downloaded")
    kept = [
        file.stat().st_size
        for folder in (tmp_path / "hub").glob("hub/models--someone--[lh]*")
        for file in folder.rglob("*")
    ]
    assert not [size for size in kept if size > 4 * 2**20]


def test_without_a_network_the_error_is_clear_and_within_half_a_minute(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port
    ((text, seconds),) = load_in_another_process(
        f"http://127.0.0.1:{port}", tmp_path, [{"path_or_hub_id": "someone/faces"}]
    )
    assert seconds < 30  # of which the Hub's library tries again for 23
    assert_one_sentence(FileNotFoundError(text), "no local folder or file is named 'someone/faces'", "the connection")
