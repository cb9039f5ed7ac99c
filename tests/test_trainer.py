"""Training against a loop written out by hand, torch's own schedules, and uninterrupted runs."""

import copy
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import train
from emotion.__main__ import main as command_line
from emotion.checkpoint import load_checkpoint, load_metadata, load_training_state, save_checkpoint
from emotion.data import FaceDataset
from emotion.demo import make_dataset
from emotion.evaluate import evaluate
from emotion.labels import FER2013_LABELS, FERPLUS_LABELS
from emotion.model import EmotionCNN, create_enhanced_grayscale_model
from emotion.recipes import TrainingConfig
from emotion.trainer import (
    STATE_FILE,
    FaceLoader,
    TrainingDiverged,
    fit,
    record_passes,
    train_epoch,
    validate_epoch,
)
from emotion.transforms import get_enhanced_transforms_grayscale_48

ROOT = Path(__file__).parents[1]
# 16-pixel pictures cost a ninth of the arithmetic and go through the same code.
QUICK = TrainingConfig(epochs=3, batch_size=16, image_sizes=(16,), learning_rate=0.003)


@pytest.fixture(scope="module")
def faces() -> FaceDataset:
    return make_dataset(56, seed=1)


@pytest.fixture(scope="module")
def other_faces() -> FaceDataset:
    return make_dataset(28, seed=2)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48 * 48, 16), nn.ReLU(), nn.Linear(16, 7))


def batches(faces: FaceDataset, as_classes: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = get_enhanced_transforms_grayscale_48(False)(faces.images[:, None])
    targets = faces.class_indices if as_classes else 0.9 * faces.targets + 0.1 / 7
    return list(zip(images.split(20), targets.split(20), strict=True))


@pytest.mark.parametrize("sam_rho", [0.0, 0.3])
@pytest.mark.parametrize("as_classes", [True, False], ids=["class indices", "distributions"])
def test_train_epoch_descends_by_the_gradient_here_or_uphill(
    faces: FaceDataset, as_classes: bool, sam_rho: float
) -> None:
    loader = batches(faces, as_classes)
    ours, reference = small_network(), small_network()
    optimizer = torch.optim.SGD(ours.parameters(), 0.05)
    result = train_epoch(ours, loader, nn.CrossEntropyLoss(), optimizer, "cpu", sam_rho=sam_rho)

    def per_face(images: torch.Tensor, distribution: torch.Tensor) -> torch.Tensor:
        return -(distribution * reference(images).log_softmax(1)).sum(1)

    losses, right, weights = [], [], list(reference.parameters())
    for images, targets in loader:
        distribution = nn.functional.one_hot(targets, 7).float() if as_classes else targets
        losses += per_face(images, distribution).tolist()
        right += (reference(images).argmax(1) == distribution.argmax(1)).tolist()
        here = nn.utils.parameters_to_vector(weights).detach()
        for distance in (sam_rho, 0.0):
            gradients = torch.autograd.grad(per_face(images, distribution).mean(), weights)
            gradient = nn.utils.parameters_to_vector(gradients)
            nn.utils.vector_to_parameters(here + distance * gradient / gradient.norm(), weights)
        nn.utils.vector_to_parameters(here - 0.05 * gradient, weights)
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert result == pytest.approx((np.mean(losses), np.mean(right)), rel=1e-5)


def test_epochs_take_objects_prepared_by_accelerate(faces: FaceDataset) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    images = get_enhanced_transforms_grayscale_48(False)(faces.images[:, None])
    loader = DataLoader(TensorDataset(images, faces.class_indices), batch_size=20)
    plain, criterion = small_network(), nn.CrossEntropyLoss()
    expected = train_epoch(plain, loader, criterion, torch.optim.SGD(plain.parameters(), 0.05), "cpu")

    AcceleratorState._reset_state()  # Accelerate remembers the precision of a training before this test.
    accelerator = Accelerator(cpu=True)
    network = small_network()
    model, optimizer, prepared = accelerator.prepare(network, torch.optim.SGD(network.parameters(), 0.05), loader)
    assert train_epoch(model, prepared, criterion, optimizer, accelerator.device) == expected
    assert validate_epoch(model, prepared, criterion, "cpu")[:2] == validate_epoch(plain, loader, criterion, "cpu")[:2]


def test_validate_epoch_measures_without_training(faces: FaceDataset) -> None:
    network = EmotionCNN()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    loader = batches(faces, as_classes=True)
    loss, accuracy, predictions, targets = validate_epoch(network, loader, nn.CrossEntropyLoss(), "cpu")
    with torch.no_grad():
        logits = network.eval()(torch.cat([images for images, _ in loader]))
    assert torch.equal(targets, faces.class_indices)
    assert torch.equal(predictions, logits.argmax(1))
    assert accuracy == pytest.approx((logits.argmax(1) == faces.class_indices).float().mean())
    assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, faces.class_indices)), rel=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_an_empty_loader_is_refused() -> None:
    network = small_network()
    with pytest.raises(ValueError, match="gave no batch; give at least one face"):
        train_epoch(network, [], nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), 0.1), "cpu")


def test_loader_shows_every_face_in_a_new_order_each_epoch() -> None:
    # The picture's grey level says which row it is.
    images = torch.arange(30, dtype=torch.uint8)[:, None, None].expand(30, 48, 48).contiguous()
    rows = FaceDataset(images, torch.eye(7)[torch.arange(30) % 7], FER2013_LABELS)
    loader = FaceLoader(rows, 10, get_enhanced_transforms_grayscale_48(False), shuffle=True, seed=4)

    def order() -> list[int]:
        return [round(float(image.mean() * 127.5 + 127.5)) for batch, _ in loader for image in batch]

    first, again = order(), order()
    loader.epoch = 1
    assert sorted(first) == sorted(order()) == list(range(30))
    assert first == again
    assert first != order()


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_learning_rate_follows_the_schedule(faces: FaceDataset, tmp_path: Path, name: str) -> None:
    config = dataclasses.replace(QUICK, epochs=10, schedule=name, batch_size=28, patience=10)
    fit(config, faces.subset(range(28)), faces.subset(range(7)), tmp_path / "run")
    rates = [entry["learning_rate"] for entry in json.loads((tmp_path / "run" / "history.json").read_text())]
    if name == "step":
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], config.learning_rate)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=8, gamma=0.5)
        expected = []
        for _ in range(10):
            expected += scheduler.get_last_lr()
            optimizer.step()
            scheduler.step()
    else:
        # One step an epoch: a warm-up of one step, then half a cosine over the nine that are left.
        expected = [config.learning_rate * min(1, (1 + math.cos(math.pi * max(0, k - 1) / 9)) / 2) for k in range(10)]
    assert rates == pytest.approx(expected)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = load_training_state(folder / STATE_FILE)
    assert (folder / "model.safetensors").exists()
    return {**state["network"], **{f"average of {k}": v for k, v in (state["averaged"] or {}).items()}}


def fit_one_epoch(config: TrainingConfig, training: FaceDataset, validation: FaceDataset, folder: Path) -> dict:
    """Leave `folder` as a run cut after its first epoch does, if no schedule looks at the number of epochs."""
    fit(dataclasses.replace(config, epochs=1), training, validation, folder)
    state = load_training_state(folder / STATE_FILE)
    state["identity"]["config"] = dataclasses.asdict(config)
    torch.save(state, folder / STATE_FILE)
    return state


def test_a_run_goes_on_in_the_precision_that_it_was_computed_in(
    faces: FaceDataset, other_faces: FaceDataset, tmp_path: Path
) -> None:
    config, file = dataclasses.replace(QUICK, epochs=2, precision="float32"), tmp_path / "run" / STATE_FILE
    fit_one_epoch(config, faces, other_faces, tmp_path / "run")

    def epochs_after(precision: str) -> int:
        """How far the run gets if "auto" was `precision` where it comes from."""
        state = load_training_state(file)
        identity = state["identity"] | {"precision": precision}
        identity["config"] = identity["config"] | {"precision": "auto"}
        torch.save(state | {"identity": identity}, file)
        fit(config, faces, other_faces, tmp_path / "run", resume=True)
        return len(load_training_state(file)["history"])

    with pytest.raises(ValueError, match=r"holds a run with other precision \(bfloat16\); repeat its settings"):
        epochs_after("bfloat16")
    assert epochs_after("float32") == 2
    assert epochs_after("bfloat16") == 2  # complete, it computes nothing more


def test_a_run_from_before_there_was_a_flag_goes_on(
    faces: FaceDataset, other_faces: FaceDataset, tmp_path: Path
) -> None:
    config = dataclasses.replace(QUICK, epochs=2)
    state = fit_one_epoch(config, faces, other_faces, tmp_path / "run")
    del state["identity"]["config"]["sam_rho"]
    torch.save(state, tmp_path / "run" / STATE_FILE)
    with pytest.raises(ValueError, match=r"holds a run with other sam_rho \(0.0\); repeat its settings"):
        fit(dataclasses.replace(config, sam_rho=0.1), faces, other_faces, tmp_path / "run", resume=True)
    fit(config, faces, other_faces, tmp_path / "run", resume=True)
    assert len(load_training_state(tmp_path / "run" / STATE_FILE)["history"]) == 2


def test_best_epoch_is_kept_and_patience_ends_the_run(
    faces: FaceDataset, other_faces: FaceDataset, tmp_path: Path
) -> None:
    # At this rate only the batch norms' statistics change, so that the first epoch stays the best.
    config = dataclasses.replace(QUICK, epochs=30, patience=2, learning_rate=1e-9)
    kept = fit(config, faces, other_faces, tmp_path / "run").state_dict()
    history = json.loads((tmp_path / "run/history.json").read_text())
    assert [entry["validation_accuracy"] for entry in history] == [history[0]["validation_accuracy"]] * 3
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")
    first = fit(dataclasses.replace(config, epochs=1), faces, other_faces, tmp_path / "first").state_dict()
    assert all(torch.equal(kept[name], first[name]) for name in first)
    statistics = "classifier.3.running_mean"
    assert not torch.equal(kept[statistics], weights(tmp_path / "run")[statistics])


def test_a_run_starts_from_the_weights_of_a_checkpoint(faces: FaceDataset, tmp_path: Path) -> None:
    torch.manual_seed(5)
    labels = ("contempt", *reversed(FER2013_LABELS))
    source = EmotionCNN(8, labels=labels, temperature=2.0)
    save_checkpoint(source, tmp_path / "source")
    # At this rate the weights stay where they start.
    config = dataclasses.replace(
        QUICK, epochs=1, optimizer="sgd", learning_rate=1e-12, start_from=str(tmp_path / "source")
    )
    network = fit(config, faces, faces, tmp_path / "run")
    assert network.temperature == 1.0
    kept, given = (dict(model.named_parameters()) for model in (network, source))
    output = {name for name in given if given[name].shape[0] == 8}
    assert len(output) == 2
    for name in given.keys() - output:
        torch.testing.assert_close(kept[name], given[name], atol=1e-3, rtol=1e-3)
    for name in FER2013_LABELS:  # rows follow the names, not the positions
        row, old_row = network.classifier[-1].weight[network.labels.index(name)], labels.index(name)
        torch.testing.assert_close(row, source.classifier[-1].weight[old_row], atol=1e-3, rtol=1e-3)
    shutil.rmtree(tmp_path / "source")
    fit(config, faces, faces, tmp_path / "run", resume=True)
    with pytest.raises(FileNotFoundError, match="source"):
        fit(config, faces, faces, tmp_path / "other")


def test_a_diverging_run_stops_and_keeps_the_best_weights(
    faces: FaceDataset, other_faces: FaceDataset, tmp_path: Path
) -> None:
    # A rate that no network survives; and a run whose second epoch starts from weights that are not numbers.
    config = dataclasses.replace(
        QUICK, epochs=30, patience=30, optimizer="sgd", schedule="cosine", learning_rate=1e30, weight_decay=0.0
    )
    sane = dataclasses.replace(config, epochs=2, learning_rate=1e-3)
    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        fit(config, faces, other_faces, tmp_path / "broken")
    state = fit_one_epoch(sane, faces, other_faces, tmp_path / "run")
    before = (tmp_path / "run/model.safetensors").read_bytes()
    state["network"] = {k: v * math.nan if v.is_floating_point() else v for k, v in state["network"].items()}
    torch.save(state, tmp_path / "run" / STATE_FILE)
    with pytest.raises(TrainingDiverged):
        fit(sane, faces, other_faces, tmp_path / "run", resume=True)
    assert (tmp_path / "run/model.safetensors").read_bytes() == before
    assert load_checkpoint(tmp_path / "run").labels == FER2013_LABELS


def test_a_run_is_neither_overwritten_nor_continued_as_another(
    faces: FaceDataset, other_faces: FaceDataset, tmp_path: Path
) -> None:
    config = dataclasses.replace(QUICK, epochs=1)
    fit(config, faces, other_faces, tmp_path / "run")
    with pytest.raises(FileExistsError, match="already holds a network; pass --resume"):
        fit(config, faces, other_faces, tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run with other seed \(0\); repeat its settings"):
        fit(dataclasses.replace(config, seed=1), faces, other_faces, tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="holds a run with other data"):
        fit(config, other_faces, other_faces, tmp_path / "run", resume=True)
    torch.save({}, tmp_path / "run" / STATE_FILE)
    with pytest.raises(ValueError, match="is not what a training leaves"):
        fit(config, faces, other_faces, tmp_path / "run", resume=True)
    # A network from elsewhere, without a training state, is not overwritten either.
    (tmp_path / "run" / STATE_FILE).unlink()
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="holds a network without the training_state.pt"):
            fit(config, faces, other_faces, tmp_path / "run", resume)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def train_losses(folder: Path) -> list[float]:
    return [epoch["train_loss"] for epoch in json.loads((folder / "history.json").read_text())]


def save_teacher(
    folder: Path, seed: int, labels: tuple[str, ...], temperature: float, training_config: dict | None = None
) -> EmotionCNN:
    """An untrained network with opinions: other probabilities for every face."""
    torch.manual_seed(seed)
    teacher = EmotionCNN(len(labels), labels=labels, temperature=temperature)
    with torch.no_grad():
        teacher.classifier[-1].weight *= 300
    save_checkpoint(teacher, folder, training_config=training_config)
    return load_checkpoint(folder)  # weights are stored as float16


def test_teachers_answers_are_mixed_into_the_targets(faces: FaceDataset, tmp_path: Path) -> None:
    # One teacher knows a class more than the faces have, and the others in another order.
    one = save_teacher(tmp_path / "a", 3, ("contempt", *reversed(FER2013_LABELS)), 2.0)
    other = save_teacher(tmp_path / "b", 4, FER2013_LABELS, 0.5)
    pixels = faces.images[:, None] / 127.5 - 1
    with torch.no_grad():
        answers = (one(pixels)[:, 1:].flip(1) / 2).softmax(1) + (other(pixels) / 0.5).softmax(1)
    mixed = FaceDataset(faces.images, 0.6 * faces.targets + 0.4 * answers / 2, faces.labels)
    # Steps too small to change a weight, for Adam's others amplify the rounding, differently by processor.
    config = dataclasses.replace(QUICK, epochs=1, augmentation=(0.0, 0.0), precision="float32", learning_rate=1e-12)
    teachers = (str(tmp_path / "a"), str(tmp_path / "b"))
    fit(dataclasses.replace(config, teachers=teachers, teacher_share=0.4), faces, faces, tmp_path / "taught")
    fit(config, mixed, faces, tmp_path / "us")
    assert train_losses(tmp_path / "taught") == pytest.approx(train_losses(tmp_path / "us"), rel=1e-5)


def test_teachers_see_the_faces_that_the_pupil_sees(faces: FaceDataset) -> None:
    loader = FaceLoader(faces, 16, get_enhanced_transforms_grayscale_48(True), shuffle=True)
    loader.mixup = 1.0
    plain = list(loader)
    seen = []

    def teach(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append((images, targets))
        return targets.flip(1)

    loader.teach = teach
    taught = list(loader)
    assert len(plain) == len(taught) == len(seen) == 3
    for (images, targets), (pupils, changed), (teachers, given) in zip(plain, taught, seen, strict=True):
        assert torch.equal(images, pupils) and torch.equal(images, teachers)
        assert torch.equal(targets, given) and torch.equal(targets.flip(1), changed)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_mixup_lays_faces_and_targets_over_another_one(share: float) -> None:
    faces = make_dataset(400, seed=5)
    loader = FaceLoader(faces, 400, get_enhanced_transforms_grayscale_48(False))
    loader.mixup = share
    ((images, targets),) = loader
    pixels = (faces.images / 127.5 - 1).flatten(1)
    before = pixels.roll(1, 0)
    # The weight of the other face, by least squares over the pixels.
    difference = before - pixels
    weights = ((images.flatten(1) - pixels) * difference).sum(1) / difference.square().sum(1)
    torch.testing.assert_close(images.flatten(1), pixels + weights[:, None] * difference, atol=1e-5, rtol=0)
    expected = faces.targets + weights[:, None] * (faces.targets.roll(1, 0) - faces.targets)
    torch.testing.assert_close(targets, expected, atol=1e-5, rtol=0)
    mixed = weights[weights > 1e-4]
    assert len(mixed) / 400 == pytest.approx(share, abs=0.1)
    if share:  # evenly from 0 to 1, as SciPy has it
        assert scipy.stats.kstest(mixed.numpy(), "uniform").pvalue > 0.001


def test_a_run_goes_on_with_the_same_teachers_only(faces: FaceDataset, tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", 3, FER2013_LABELS, 1.0, {"config": {"seed": 9}})
    config = dataclasses.replace(QUICK, epochs=2, mixup=0.5, teachers=(str(tmp_path / "teacher"),))
    fit(config, faces, faces, tmp_path / "whole")
    cut = tmp_path / "cut"
    fit_one_epoch(config, faces, faces, cut)
    save_teacher(tmp_path / "teacher", 4, FER2013_LABELS, 1.0)
    with pytest.raises(ValueError, match="cut holds a run with other taught_by"):
        fit(config, faces, faces, cut, resume=True)
    shutil.rmtree(tmp_path / "teacher")
    with pytest.raises(FileNotFoundError, match="teacher"):
        fit(config, faces, faces, cut, resume=True)
    save_checkpoint(teacher, tmp_path / "teacher")
    fit(config, faces, faces, cut, resume=True)
    assert load_metadata(cut, "training_config")["origins"] == {config.teachers[0]: {"config": {"seed": 9}}}
    assert train_losses(cut) == train_losses(tmp_path / "whole")


def test_a_teacher_knows_every_class(faces: FaceDataset, tmp_path: Path) -> None:
    save_teacher(tmp_path / "teacher", 3, ("happy", "sad", *FERPLUS_LABELS[-1:]), 1.0)
    config = dataclasses.replace(QUICK, teachers=(str(tmp_path / "teacher"),))
    with pytest.raises(
        ValueError, match="teacher does not know angry, disgust, fear, surprise, neutral; give teachers"
    ):
        fit(config, faces, faces, tmp_path / "run")


def test_hard_epochs_learn_the_most_probable_classes_alone(faces: FaceDataset, tmp_path: Path) -> None:
    soft = FaceDataset(faces.images, 0.6 * faces.targets + 0.4 / 7, faces.labels)
    save_checkpoint(EmotionCNN(7), tmp_path / "teacher")
    config = dataclasses.replace(QUICK, teachers=(str(tmp_path / "teacher"),), mixup=1.0, epochs=1)
    losses = {}
    for hard_epochs, epochs in ((0, 2), (1, 1), (1, 2)):
        output = tmp_path / f"{hard_epochs} of {epochs}"
        fit(dataclasses.replace(config, hard_epochs=hard_epochs, epochs=epochs), soft, faces, output)
        losses[hard_epochs, epochs] = train_losses(output)
    fit(dataclasses.replace(config, teachers=(), mixup=0.0), faces, faces, tmp_path / "plain")
    assert losses[1, 1] == train_losses(tmp_path / "plain")
    assert losses[1, 2][0] == losses[0, 2][0] != losses[1, 1][0]
    assert losses[1, 2][1] != losses[0, 2][1]


def test_without_advanced_augmentation_faces_only_move(faces: FaceDataset, tmp_path: Path) -> None:
    # What moves in or out of these pictures is of their own grey: moving them changes nothing.
    grey = dataclasses.replace(faces, images=torch.full_like(faces.images, 128))

    def weights(name: str, **changes: object) -> torch.Tensor:
        network = fit(dataclasses.replace(QUICK, epochs=1, **changes), grey, grey, tmp_path / name)
        return nn.utils.parameters_to_vector(network.parameters())

    still = weights("still", augmentation=(0.0, 0.0))
    assert torch.equal(weights("moved", augmentation=(1.0, 1.0), advanced_augmentation=False), still)
    assert not torch.equal(weights("changed", augmentation=(1.0, 1.0)), still)


def test_a_process_may_train_in_one_precision_after_the_other(
    faces: FaceDataset, other_faces: FaceDataset, tmp_path: Path
) -> None:
    config = dataclasses.replace(QUICK, epochs=1)
    for precision in ("float32", "bfloat16"):
        few = faces.subset(range(16))
        fit(dataclasses.replace(config, precision=precision), few, other_faces, tmp_path / precision)
    one, other = weights(tmp_path / "float32"), weights(tmp_path / "bfloat16")
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_too_few_faces_are_refused(faces: FaceDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 training and 56 validation faces; give at least 2 of"):
        fit(QUICK, faces.subset([0]), faces, tmp_path / "run")


# The command


def write_csv(folder: Path) -> Path:
    """Drawn faces in Kaggle's format, with a training and a validation split."""
    tables = []
    for usage, faces in (("Training", make_dataset(42, seed=1)), ("PublicTest", make_dataset(21, seed=2))):
        pixels = [" ".join(map(str, image.flatten().tolist())) for image in faces.images]
        tables.append(pd.DataFrame({"emotion": faces.class_indices.tolist(), "pixels": pixels, "Usage": usage}))
    pd.concat(tables).to_csv(folder / "fer2013.csv", index=False)
    return folder / "fer2013.csv"


def run(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "EMOTION_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    # Without --multi_gpu Accelerate leaves starting processes to MPI; with it and no GPU, they are CPU processes.
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2)
    options = ("--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0)
    arguments = ("--data", write_csv(tmp_path), "--output", tmp_path / "run", "--epochs", 2)
    done = run(*launch, *options, "train.py", *arguments, "--batch-size", 7, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("plain: accuracy") == 1
    run_settings = json.loads((tmp_path / "run/training_config.json").read_text())
    assert run_settings["processes"] == 2
    written = json.loads((tmp_path / "run/metrics.json").read_text())
    assert list(written) == ["plain", "tta", "unseen", "new_photos", "clear_answer"]
    assert (tmp_path / "run/confusion.png").exists() and (tmp_path / "run/reliability.png").exists()
    metrics = written["plain"]
    history = json.loads((tmp_path / "run/history.json").read_text())
    assert metrics["rows"] == 21
    # The two halves of the validation faces were measured apart; together they must give the same figure.
    assert metrics["accuracy"] == pytest.approx(max(entry["validation_accuracy"] for entry in history))
    [line] = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["plain"]["accuracy"] == metrics["accuracy"] and json.loads(line)["epochs"] == 2
    # What is on disk, temperature included, gives the figures that stand beside it.
    again = evaluate(load_checkpoint(tmp_path / "run"), make_dataset(21, seed=2), tta=True)
    assert written["tta"]["temperature"] == again["temperature"] != 1
    assert written["tta"]["nll"] == pytest.approx(again["nll"], rel=1e-5)


def test_what_training_was_without_is_unseen_to_its_report_and_to_that_of_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMOTION_CACHE", str(tmp_path / "cache"))
    data = write_csv(tmp_path)
    table = pd.read_csv(data)
    again = table[table["Usage"] == "PublicTest"].head(8).assign(Usage="Training")
    pd.concat([table, again]).to_csv(data, index=False)
    quick = ("--data", str(data), "--epochs", "1", "--image-sizes", "16")
    for name, flags, rows in (("all", (), 13), ("fewer", ("--drop-duplicates",), 21)):
        folder = tmp_path / name
        assert train.main([*quick, "--output", str(folder), *flags]) == 0
        trained = load_metadata(folder, "metrics")
        call = ("evaluate", "--checkpoint", str(folder), "--data", str(data), "--labels", "fer2013")
        assert command_line([*call, "--split", "PublicTest", "--full", "--output", str(folder)]) == 0
        evaluated = load_metadata(folder, "metrics")
        for metrics in (trained, evaluated):
            assert metrics["unseen"]["rows"] == rows, name
    capsys.readouterr()


def test_help_groups_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    assert end.value.code == 0
    help_text = capsys.readouterr().out
    assert [f"\n{group}:\n" in help_text for group in ("data", "run", "recipe")] == [True] * 3


def test_wrong_usage_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMOTION_CACHE", str(tmp_path / "cache"))
    data = str(write_csv(tmp_path))
    run_on = ["--data", data, "--output", str(tmp_path / "run")]
    for arguments, sentence in (
        (["--data", "missing.csv", "--output", str(tmp_path / "run")], "missing.csv does not exist; give"),
        ([*run_on, "--labels", "ferplus"], "No FER+ votes"),
        ([*run_on, "--epochs", "0"], "epochs is 0"),
        ([*run_on, "--image-sizes", "48", "32"], "give them in rising order"),
        ([*run_on, "--log", f"{data}/log"], f"Cannot write the log {data}/log: "),
        ([*run_on, "--log", f"{data}/log", "--votes", "none.csv"], "Note: on FER2013's labels, --votes are not used"),
        ([*run_on, "--teachers", f"{tmp_path}/one", f"{tmp_path}/other"], f"{tmp_path}/one"),
        (["--data", data], "the following arguments are required: --output"),
    ):
        try:
            status = train.main(arguments)
        except SystemExit as end:
            status = end.code
        assert status == 2, arguments
        errors = capsys.readouterr().err
        assert sentence in errors
        assert "Traceback" not in errors
    done = run(sys.executable, "train.py", *run_on, "--labels", "ferplus", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("train.py: No FER+ votes") and done.stderr.count("\n") == 1


def test_average_of_the_weights_follows_the_steps(faces: FaceDataset, other_faces: FaceDataset, tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, batch_size=len(faces))  # a step an epoch
    torch.manual_seed(config.seed)
    states = [create_enhanced_grayscale_model(7, config.dropout_rate).state_dict()]
    for steps in (1, 2, 3):
        fit(dataclasses.replace(config, epochs=steps), faces, other_faces, tmp_path / str(steps))
        states.append(load_training_state(tmp_path / str(steps) / STATE_FILE)["network"])
    fit(dataclasses.replace(config, ema_decay=0.6), faces, other_faces, tmp_path / "averaged")
    averaged = load_training_state(tmp_path / "averaged" / STATE_FILE)["averaged"]
    for name, value in averaged.items():
        if value.is_floating_point():
            shares = zip((0.6**3, 0.4 * 0.6**2, 0.4 * 0.6, 0.4), states, strict=True)
            expected = sum(share * torch.as_tensor(state[name]) for share, state in shares)
            torch.testing.assert_close(torch.as_tensor(value), expected, rtol=1e-4, atol=1e-6, msg=name)


def test_faces_augmented_ahead_come_in_the_same_batches(faces: FaceDataset) -> None:
    transform = get_enhanced_transforms_grayscale_48(True)
    for shuffle, sizes in ((True, [12] * 4), (False, [12, 12, 12, 12, 8])):
        one, several = (FaceLoader(faces, 12, transform, shuffle=shuffle, seed=3) for _ in range(2))
        several.ahead = 3
        one.strength = several.strength = 0.0  # draws are those of several batches at a time
        assert [len(images) for images, _ in several] == sizes
        for ours, theirs in zip(several, one, strict=True):
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_recorded_passes_learn_what_launched_ones_do() -> None:
    torch.manual_seed(0)
    launched = EmotionCNN(dropout_rate=0).cuda()
    recorded = copy.deepcopy(launched)
    record_passes(recorded, torch.zeros(32, 1, 48, 48, device="cuda"))
    for name, value in launched.state_dict().items():
        assert torch.equal(recorded.state_dict()[name], value), name
    batches = [(torch.randn(32, 1, 48, 48), torch.rand(32, 7).softmax(1)) for _ in range(3)]
    for network in (launched, recorded):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        train_epoch(network, batches, nn.CrossEntropyLoss(), optimizer, "cuda")
    for name, value in launched.state_dict().items():
        torch.testing.assert_close(recorded.state_dict()[name], value, rtol=0.02, atol=0.002, msg=name)
    faces = torch.randn(5, 1, 48, 48, device="cuda")  # another number than recorded
    torch.testing.assert_close(recorded.eval()(faces), launched.eval()(faces), rtol=0.05, atol=0.02)
