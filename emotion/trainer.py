"""Training: two plain functions for one epoch, and the loop around them.

One code path serves the CPU, one GPU and several processes (through Accelerate). Every epoch seeds all its random
numbers from (seed, epoch), so that a resumed run repeats an interrupted epoch exactly and no generator state has to
be stored.
"""

import copy
import dataclasses
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from emotion.checkpoint import (
    atomic_write,
    load_checkpoint,
    load_metadata,
    load_training_state,
    save_checkpoint,
    save_training_state,
    to_json,
)
from emotion.data import FaceDataset
from emotion.labels import IMAGE_SIZE
from emotion.model import BLOCKS, EmotionCNN, create_enhanced_grayscale_model
from emotion.recipes import TrainingConfig, with_defaults
from emotion.transforms import Pipeline, get_enhanced_transforms_grayscale_48

STATE_FILE = "training_state.pt"
AHEAD = 16
"""Batches that are augmented, mixed and taught at once, but on a CPU: its caches hold one."""


class TrainingDiverged(RuntimeError):
    """A loss is no longer a finite number; `fit` leaves the best weights so far, if any, on disk."""


class Teachers:
    """The mean calibrated answer of several networks, in the classes of their pupil.

    Args:
        names: checkpoints (folders, `.pth` files or Hub ids).
        labels: classes of the pupil; each teacher must know all of them.
        device: where they answer.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if one is damaged or does not know every class.
    """

    def __init__(self, names: Sequence[str], labels: Sequence[str], device: torch.device | str) -> None:
        self.networks = [load_checkpoint(name, device).to(memory_format=torch.channels_last) for name in names]
        for name, network in zip(names, self.networks, strict=True):
            if unknown := [label for label in labels if label not in network.labels]:
                raise ValueError(
                    f"The teacher {name} does not know {', '.join(unknown)}; give teachers that know every class of "
                    "the training faces."
                )
        self.columns = [[network.labels.index(label) for label in labels] for network in self.networks]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Float images (B, 1, 48, 48), normalised, to float32 probabilities (B, C), rows summing to 1."""
        answers = zip(self.networks, self.columns, strict=True)
        return torch.stack([network.calibrate(network(images)[:, columns]) for network, columns in answers]).mean(0)

    @property
    def fingerprints(self) -> list[str]:
        """A hash of each network's weights and temperature."""
        return [_hash(network.temperature, *network.state_dict().values()) for network in self.networks]


class FaceLoader:
    """Batches of faces that live on the device as uint8 and are augmented there, on a CPU a batch at a time.

    Yields (images, targets): float (B, 1, S, S), normalised, and float (B, C). With several processes, each one gets
    its own share of the rows. Set `epoch`, augmentation `strength`, picture `size`, the share `mixup` of faces that
    are mixed with another, `teach`, from images (B, 1, 48, 48) and targets to targets, and, if they are to be others
    than the data set's, `targets`, float (N, C) on the device, before iterating.

    Args:
        dataset: the faces.
        batch_size: faces per batch and process.
        transform: the pipeline that turns uint8 into network input.
        device: where the faces are held and augmented.
        shuffle: draw a new order every epoch and drop the last incomplete batch (batch norm cannot take a rest of
            one); otherwise all rows in order.
        seed: seeds, with `epoch` and the process index, order and augmentation.
    """

    def __init__(
        self,
        dataset: FaceDataset,
        batch_size: int,
        transform: Pipeline,
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self.images = dataset.images.to(device)[:, None]
        self.targets = dataset.targets.to(device)
        self.transform = transform
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.strength = 1.0
        self.size = IMAGE_SIZE
        self.mixup = 0.0
        self.teach: Callable[[Tensor, Tensor], Tensor] | None = None
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        rows = len(dataset) // self.world if shuffle else len(range(self.rank, len(dataset), self.world))
        self.batch_size = min(batch_size, rows) if shuffle else batch_size
        self.steps = rows // self.batch_size if shuffle else math.ceil(rows / batch_size)
        # A GPU takes longer to be told of these small steps than to compute them.
        self.ahead = 1 if self.images.device.type == "cpu" else AHEAD

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # The order is the same in every process, the augmentation is not.
        order = torch.arange(len(self.images))
        if self.shuffle:
            shuffler = torch.Generator().manual_seed(_derived_seed(self.seed, self.epoch, "order"))
            order = torch.randperm(len(self.images), generator=shuffler)
        order = order[self.rank :: self.world].to(self.images.device)
        generator = torch.Generator().manual_seed(_derived_seed(self.seed, self.epoch, f"augmentation {self.rank}"))
        order = order[: self.steps * self.batch_size]  # what of a shuffled one fills no batch is left out
        for start in range(0, len(order), self.ahead * self.batch_size):
            rows = order[start : start + self.ahead * self.batch_size]
            images, targets = self.transform(self.images[rows], self.strength, generator), self.targets[rows]
            if self.mixup:
                images, targets = _mixed(images, targets, self.mixup, generator)
            if self.teach:
                targets = self.teach(images, targets)
            if self.size != IMAGE_SIZE:
                images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
            yield from zip(images.split(self.batch_size), targets.split(self.batch_size), strict=True)


def _mixed(images: Tensor, targets: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A `share` of the images and their targets mixed with those before them in the batch, by weights from 0 to 1."""
    chosen, weights = torch.rand(2, len(images), generator=generator)
    weights = (weights * (chosen < share)).to(images.device, non_blocking=True)
    return (
        images.lerp(images.roll(1, 0), weights[:, None, None, None]),
        targets.lerp(targets.roll(1, 0), weights[:, None]),
    )


def train_epoch(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    on_step: Callable[[], None] | None = None,
    sam_rho: float = 0.0,
) -> tuple[float, float]:
    """Train for one pass over `loader`, with plain objects or ones that Accelerate has prepared.

    Args:
        model: (B, 1, 48, 48) to logits (B, C).
        loader: yields images (B, 1, 48, 48) and targets, either class indices (B,) or distributions (B, C).
        criterion: mean loss of (logits, targets), such as `nn.CrossEntropyLoss`.
        optimizer: stepped once per batch.
        device: where batches are moved to.
        on_step: called after every optimizer step.
        sam_rho: distance up the loss at which the gradient of each step is taken (sharpness-aware minimisation,
            Foret et al. 2021, arXiv 2010.01412).

    Returns:
        Mean loss per face and top-1 accuracy as a fraction, reduced over all processes.

    Raises:
        ValueError: if the loader is empty.
        TrainingDiverged: if the loss has become infinite or not a number.
    """
    model.train()
    totals = torch.zeros(3, device=device)
    for images, targets in loader:
        images, targets = images.to(device), targets.to(device)
        optimizer.zero_grad()
        logits = model(images)
        loss = criterion(logits, targets)
        loss.backward()
        totals += torch.stack(_totals(loss, logits, targets))  # before a recorded pass writes the next logits there
        if sam_rho:
            with _uphill(optimizer, sam_rho):
                optimizer.zero_grad()
                criterion(model(images), targets).backward()
        optimizer.step()
        if on_step:
            on_step()
    loss, accuracy = _means(totals)
    if not math.isfinite(loss):
        raise TrainingDiverged(f"The training loss became {loss}; lower the learning rate.")
    return loss, accuracy


@contextmanager
def _uphill(optimizer: torch.optim.Optimizer, distance: float) -> Iterator[None]:
    """Within it, the weights are moved by `distance` along their gradients; where there are none, not at all."""
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    before = [weight.detach().clone() for weight in weights]
    gradients = [weight.grad for weight in weights]
    with torch.no_grad():
        # All weights at once, and no number brought back, so that a GPU need not wait.
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        torch._foreach_add_(weights, torch._foreach_mul(gradients, distance / (norm + 1e-12)))
    yield
    with torch.no_grad():
        torch._foreach_copy_(weights, before)


@torch.no_grad()
def validate_epoch(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], criterion: nn.Module, device: torch.device | str
) -> tuple[float, float, Tensor, Tensor]:
    """Measure loss and accuracy over `loader` in eval mode; arguments as for `train_epoch`.

    Returns:
        Mean loss per face and top-1 accuracy as a fraction, both reduced over all processes, then predicted and true
        class indices, long (N,) on the CPU, of the rows that this process has seen.

    Raises:
        ValueError: if the loader is empty.
    """
    model.eval()
    totals = torch.zeros(3, device=device)
    predictions, truths = [], []
    for images, targets in loader:
        images, targets = images.to(device), targets.to(device)
        logits = model(images)
        totals += torch.stack(_totals(criterion(logits, targets), logits, targets))
        predictions.append(logits.argmax(1).cpu())
        truths.append(_class_indices(targets).cpu())
    loss, accuracy = _means(totals)
    return loss, accuracy, torch.cat(predictions), torch.cat(truths)


def _class_indices(targets: Tensor) -> Tensor:
    return targets if targets.ndim == 1 else targets.argmax(1)


def _totals(loss: Tensor, logits: Tensor, targets: Tensor) -> list[Tensor]:
    """Summed loss, number right and number of faces of one batch."""
    right = (logits.argmax(1) == _class_indices(targets)).sum()
    return [loss.detach().float() * len(targets), right.float(), right.new_tensor(len(targets), dtype=torch.float)]


def _means(totals: Tensor) -> tuple[float, float]:
    if dist.is_initialized():
        dist.all_reduce(totals)
    loss, right, faces = totals.tolist()
    if faces == 0:
        raise ValueError("The loader gave no batch; give at least one face.")
    return loss / faces, right / faces


def saved_state(output: Path, config: TrainingConfig, resume: bool) -> dict[str, Any] | None:
    """The training state that a run goes on from, or None if it begins.

    Args:
        output: folder of the run.
        config: its recipe.
        resume: go on with what is in `output`.

    Raises:
        FileExistsError: if `output` holds a network and `resume` is false, or one that is not of a run.
        ValueError: if the run there has another configuration, or its state is damaged.
    """
    state_file = output / STATE_FILE
    resumed = resume and state_file.exists()  # if not, it was cut before it began
    if (output / "model.safetensors").exists() and not resumed:
        raise FileExistsError(
            f"{output} already holds a network; pass --resume to go on with it, or another --output."
            if state_file.exists()
            else f"{output} holds a network without the {STATE_FILE} from which its training could go on; give another "
            f"--output, with --start-from {output} to train that network further."
        )
    if not resumed:
        return None
    state = load_training_state(state_file)
    if not isinstance(state.get("identity"), dict) or not isinstance(state["identity"].get("config"), dict):
        raise ValueError(f"{state_file} is not what a training leaves; bring that back, or give another --output.")
    _check_identity(state["identity"], {"config": _settings(config, output)}, output)
    return state


def fit(
    config: TrainingConfig,
    training: FaceDataset,
    validation: FaceDataset,
    output: str | Path,
    resume: bool = False,
) -> EmotionCNN:
    """Train a network and keep the best weights as a checkpoint in `output`.

    The best are those with the highest validation accuracy among the epochs of the last picture size.

    `output` also gets `history.json` and `curves.png`, rewritten every epoch, and `training_state.pt`, from which
    `resume` goes on after the last complete epoch; on the CPU with the same number of threads, a resumed run ends with
    the same weights as an uninterrupted one. Under `accelerate launch`, every process calls this function.

    Args:
        config: the recipe; its last picture size should be 48, which the network is used at.
        training: faces to learn from.
        validation: faces to choose the epoch by, with the same labels.
        output: folder of the checkpoint, made if missing.
        resume: go on with the run in `output`; begin it if there is none.

    Returns:
        The best network, read back from `output`, in eval mode on the CPU.

    Raises:
        ValueError: if the labels differ, there are fewer than two training faces and one validation face per process,
            several processes are to use `unfreeze_every`, `resume` finds a run of another configuration or other data,
            or `start_from` or a teacher is no checkpoint, or a teacher does not know all labels.
        FileExistsError: if `output` holds a network and `resume` is false, or one that is not of a run.
        FileNotFoundError: if there is no `start_from` or teacher of that name.
        RuntimeError: if ImageNet weights are asked for and cannot be had.
        OSError: if `output` cannot be written; what it held, and so the last complete epoch, stays.
        TrainingDiverged: if the loss stops being finite; the best weights so far stay in `output`.
    """
    # Imported here because it takes a second that inference need not pay.
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if training.labels != validation.labels:
        raise ValueError(f"Training labels are {training.labels}, validation labels {validation.labels}; use one set.")
    output = Path(output)
    state = saved_state(output, config, resume)
    precision = _precision(config)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if len(training) < 2 * processes or len(validation) < processes:
        raise ValueError(
            f"There are {len(training)} training and {len(validation)} validation faces; give at least "
            f"{2 * processes} of the former and {processes} of the latter, two and one per process."
        )
    # Accelerate remembers the precision of its first use; a process may train more than once.
    AcceleratorState._reset_state()
    # Told so, Accelerate forms a group of CPU processes too, whatever launched them.
    no_gpu = not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=no_gpu, mixed_precision="bf16" if precision == "bfloat16" else "no")
    if config.unfreeze_every and accelerator.num_processes > 1:
        raise ValueError("unfreeze_every works in one process only; set it to 0 or launch a single process.")
    device = accelerator.device
    identity = {
        "config": _settings(config, output),
        "precision": precision,
        "processes": accelerator.num_processes,
        "data": _hash(*(t for faces in (training, validation) for t in (faces.images, faces.targets))),
    }
    teachers = Teachers(config.teachers, training.labels, device) if config.teachers else None
    if teachers:
        identity["taught_by"] = teachers.fingerprints

    def teach(images: Tensor, targets: Tensor) -> Tensor:
        with accelerator.autocast():
            return targets.lerp(teachers(images), config.teacher_share)

    network, optimizer = _build(config, training.labels, device, anew=not state)
    if network.transferred_share and accelerator.is_main_process:
        tqdm.write(f"{network.transferred_share:.1%} of the parameters start from {config.transfer}'s ImageNet filters")
    averaged, average = averaging(network, config.ema_decay) if config.ema_decay else (None, None)

    augment = get_enhanced_transforms_grayscale_48(True, config.advanced_augmentation)
    plain = get_enhanced_transforms_grayscale_48(training=False)
    loader = FaceLoader(training, config.batch_size, augment, device, shuffle=True, seed=config.seed)
    validation_loader = FaceLoader(validation, 256, plain, device)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(config, len(loader)))
    model, optimizer = accelerator.prepare(network, optimizer)
    forward, recorded = network.forward, 0
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)

    history: list[dict] = []
    if state:
        now = dict(identity)
        if _finished(config, state["history"]):
            del now["precision"]  # nothing more is computed
        _check_identity(state["identity"], now, output)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        if averaged:
            averaged.load_state_dict(state["averaged"])
        history = state["history"]
        origins = state["origins"]  # what the run has started from may have changed or gone
    else:
        origins = _origins(config, output)
    soft, hard = loader.targets, F.one_hot(loader.targets.argmax(1), len(training.labels)).float()

    def save(candidate: EmotionCNN | None) -> None:
        """Write the files of the run, with the weights of `candidate` if it is the best so far."""
        if candidate:
            save_checkpoint(candidate, output, training_config=identity | {"origins": origins})
        with atomic_write(output / "history.json") as file:
            file.write_bytes(to_json("history", history))
        if history:
            with atomic_write(output / "curves.png") as file:
                plot_history(history, file)
        # Last, so that a run cut anywhere above repeats this epoch as if it had never begun.
        save_training_state(
            {
                "identity": identity,
                "network": network.state_dict(),
                "averaged": averaged.state_dict() if averaged else None,
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "history": history,
                "origins": origins,
            },
            output / STATE_FILE,
        )

    accelerator.wait_for_everyone()  # until all have looked for files
    if accelerator.is_main_process and not _finished(config, history):
        save(None)  # a folder that takes no files shall show before an epoch's work
    while not _finished(config, history):
        epoch, started = len(history), time.perf_counter()
        loader.epoch = epoch
        loader.strength = _strength(config, epoch)
        loader.size = validation_loader.size = config.image_sizes[epoch * len(config.image_sizes) // config.epochs]
        at_last = epoch >= config.epochs - config.hard_epochs
        loader.targets, loader.mixup = (hard, 0.0) if at_last else (soft, config.mixup)
        loader.teach = teach if teachers and not at_last else None
        if config.unfreeze_every:
            network.unfreeze_blocks(min(epoch // config.unfreeze_every, len(BLOCKS)))
        elif device.type == "cuda" and accelerator.num_processes == 1 and recorded != loader.size:
            network.forward = forward
            record_passes(network, torch.zeros(loader.batch_size, 1, loader.size, loader.size, device=device))
            recorded = loader.size
        torch.manual_seed(_derived_seed(config.seed, epoch, f"dropout {accelerator.process_index}"))
        bar = tqdm(
            total=len(loader),
            desc=f"epoch {epoch + 1}/{config.epochs}",
            leave=False,
            disable=None if accelerator.is_main_process else True,
        )

        def after_step(bar: tqdm = bar) -> None:
            scheduler.step()
            if average:
                average()
            bar.update()

        rate = scheduler.get_last_lr()[-1]
        with bar:
            train_loss, train_accuracy = train_epoch(
                model, loader, criterion, optimizer, device, after_step, config.sam_rho
            )
        candidate = averaged or network
        if accelerator.num_processes > 1:
            # Each process has batch-norm statistics of its own share; all go on with those of the first.
            for buffer in (*network.buffers(), *candidate.buffers()):
                dist.broadcast(buffer, 0)
        validation_loss, validation_accuracy, _, _ = validate_epoch(candidate, validation_loader, criterion, device)
        if not math.isfinite(validation_loss):
            raise TrainingDiverged(f"The validation loss became {validation_loss}; lower the learning rate.")
        best = max((e["validation_accuracy"] for e in history if e["image_size"] == loader.size), default=-1.0)
        history.append(
            {
                "epoch": epoch + 1,
                "learning_rate": rate,
                "augmentation_strength": loader.strength,
                "image_size": loader.size,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "validation_loss": validation_loss,
                "validation_accuracy": validation_accuracy,
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
        if accelerator.is_main_process:
            marker = "  best so far" if validation_accuracy > best else ""
            tqdm.write(
                f"epoch {epoch + 1}/{config.epochs}  train loss {train_loss:.4f} accuracy {train_accuracy:.4f}  "
                f"validation loss {validation_loss:.4f} accuracy {validation_accuracy:.4f}  "
                f"{history[-1]['seconds']:.0f} s{marker}"
            )
            save(candidate if marker else None)
    accelerator.wait_for_everyone()
    return load_checkpoint(output)


def averaging(network: EmotionCNN, decay: float) -> tuple[EmotionCNN, Callable[[], None]]:
    """A copy of a network, and what moves its weights and batch norm's statistics on, by a share of 1 - `decay`.

    torch's AveragedModel would do, but makes a GPU wait in every step.
    """
    averaged = copy.deepcopy(network)
    average = get_ema_multi_avg_fn(decay)
    pair = [[part for part in one.state_dict().values() if part.is_floating_point()] for one in (averaged, network)]
    return averaged, lambda: average(*pair, None)


@torch.no_grad()
def record_passes(network: EmotionCNN, images: Tensor) -> None:
    """Make CUDA graphs of both passes through a network in training mode, which from then on takes such batches only.

    It is so small that launching its kernels one by one takes a GPU longer than computing them. What is learned is
    the same; evaluation mode is as before. See `torch.cuda.make_graphed_callables`.

    Args:
        network: on a GPU, with all parameters to be trained.
        images: float (B, 1, S, S) there, of any values.
    """
    network.train()
    buffers = [buffer.clone() for buffer in network.buffers()]  # recording averages batch norm's statistics
    with torch.enable_grad():
        torch.cuda.make_graphed_callables(network, (images,))
    for buffer, before in zip(network.buffers(), buffers, strict=True):
        buffer.copy_(before)


def _build(
    config: TrainingConfig, labels: Sequence[str], device: torch.device, anew: bool
) -> tuple[EmotionCNN, torch.optim.Optimizer]:
    """The network, with the weights of `start_from` or `transfer` if a run begins `anew`, and its optimizer."""
    torch.manual_seed(config.seed)
    network = create_enhanced_grayscale_model(
        len(labels),
        config.dropout_rate,
        use_transfer_adaptation=config.transfer is not None and anew,
        pretrained_backbone=config.transfer or "vgg16",
        labels=labels,
    ).to(device=device, memory_format=torch.channels_last)
    if config.start_from and anew:
        _copy_weights(load_checkpoint(config.start_from), network)
    groups = network.get_transfer_learning_optimizer_groups(
        config.backbone_learning_rate if config.transfer else config.learning_rate,
        config.learning_rate,
        config.weight_decay,
    )
    if config.optimizer == "adam":
        return network, torch.optim.Adam(groups)
    return network, torch.optim.SGD(groups, momentum=0.9, nesterov=True)


def _settings(config: TrainingConfig, output: Path) -> dict[str, Any]:
    """The configuration, with checkpoints in `output` named from there: it may be moved, and seeds are compared."""
    names = {"teachers": tuple(_named(teacher, output) for teacher in config.teachers)}
    if config.start_from:
        names["start_from"] = _named(config.start_from, output)
    return dataclasses.asdict(config) | names


def _named(checkpoint: str, output: Path) -> str:
    path = Path(checkpoint)
    return str(path.relative_to(output)) if path.is_relative_to(output) else checkpoint


def _origins(config: TrainingConfig, output: Path) -> dict[str, Any]:
    """How the networks that this one learns from were trained, as far as their checkpoints know."""
    origins = {}
    for name in filter(None, (config.start_from, *config.teachers)):
        with suppress(FileNotFoundError, ValueError):
            origins[_named(name, output)] = load_metadata(name, "training_config")
    return origins


def _check_identity(before: dict, now: dict, output: Path) -> None:
    """Raise ValueError if the run in `output`, which was `before`, is not the one that goes on `now`."""

    def telling(run: dict) -> dict:
        # Not the precision that was asked for, but that beside the configuration, which "auto" led to.
        asked = {name: value for name, value in with_defaults(run["config"]).items() if name != "precision"}
        return asked | {name: value for name, value in run.items() if name != "config"}

    before, now = telling(before), telling(now)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise ValueError(
            f"{output} holds a run with other {', '.join(changed)} "
            f"({', '.join(str(before.get(name)) for name in changed)}); repeat its settings, or start anew in "
            "another --output."
        )


@torch.no_grad()
def _copy_weights(source: EmotionCNN, target: EmotionCNN) -> None:
    """All weights, but in the output layer only those of the classes that both networks name."""
    weights = source.state_dict()
    output, old_output = target.classifier[-1], source.classifier[-1]
    for name, fresh in (("weight", output.weight.clone()), ("bias", output.bias.clone())):
        for row, label in enumerate(target.labels):
            if label in source.labels:
                fresh[row] = getattr(old_output, name)[source.labels.index(label)]
        weights[f"classifier.{len(target.classifier) - 1}.{name}"] = fresh
    target.load_state_dict(weights)


def plot_history(history: list[dict], file: str | Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs as a PNG.

    Args:
        history: one entry per epoch, as in `history.json`.
        file: where the PNG goes, whatever its extension.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    epochs = [entry["epoch"] for entry in history]
    panels = (
        ("Loss", ("train_loss", "validation_loss")),
        ("Top-1 accuracy", ("train_accuracy", "validation_accuracy")),
        ("Learning rate", ("learning_rate",)),
    )
    for axes, (title, keys) in zip(figure.subplots(1, 3), panels, strict=True):
        for key in keys:
            axes.plot(epochs, [entry[key] for entry in history], marker=".", label=key.split("_")[0])
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if len(keys) > 1:
            axes.legend()
    figure.savefig(file, format="png", dpi=100)


def _schedule(config: TrainingConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Factor of the learning rate as a function of the number of steps taken."""
    if config.schedule == "step":
        return lambda step: 0.5 ** (step // steps_per_epoch // 8)
    total = config.epochs * steps_per_epoch
    warm_up = max(1, total // 10)
    return lambda step: min(
        (step + 1) / warm_up, (1 + math.cos(math.pi * min(1.0, max(0, step - warm_up) / max(1, total - warm_up)))) / 2
    )


def _strength(config: TrainingConfig, epoch: int) -> float:
    first, last = config.augmentation
    return first + (last - first) * min(1.0, epoch / max(1, config.epochs // 2))


def _finished(config: TrainingConfig, history: list[dict]) -> bool:
    # A network trained on 32-pixel faces is no judge of 48-pixel ones: patience counts at the last size only.
    accuracies = [e["validation_accuracy"] for e in history if e["image_size"] == config.image_sizes[-1]]
    patient = not accuracies or len(accuracies) - 1 - accuracies.index(max(accuracies)) < config.patience
    return len(history) >= config.epochs or not patient


def _precision(config: TrainingConfig) -> str:
    if config.precision != "auto":
        return config.precision
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # Without these instructions the CPU emulates bfloat16, fifteen times slower than float32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def _hash(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.cpu().numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode())
    return digest.hexdigest()


def _derived_seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
