"""The traditional way, VGG16 on upsampled faces, measured against ours: `python -m benchmarks.traditional`.

Each network runs in processes of its own, one that trains and one that predicts, whose peak memory Linux counts; runs
of the two networks alternate, so that what else the machine does meets both. Weights are random: neither time nor
memory depends on their values.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16

from benchmarks.measure import machine, memory, milliseconds, run
from benchmarks.report import offer_runs, offer_to_write, report
from emotion.labels import FER2013_LABELS, IMAGE_SIZE
from emotion.model import EmotionCNN

RESULTS: Final = Path("benchmarks/results/traditional.json")
"""Where `--write` puts the figures, from the project's folder; `python -m docs.make` draws on them."""
BATCH: Final = 8
"""Faces per training step; at the original recipe's 32, one of VGG16 takes too long to repeat."""
TASKS: Final = ("training", "prediction")


class TraditionalVGG16(nn.Module):
    """Transfer learning by the book: torchvision's VGG16 at 224x224 in colour, with a new head on its features.

    As is usual, VGG16's own classifier for 1,000 classes stays in the model, although nothing uses it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vgg16 = vgg16()
        widths = (512 * 7 * 7, 4096, 1024, 256, len(FER2013_LABELS))
        head: list[nn.Module] = []
        for width_in, width in pairwise(widths):
            head += [nn.Linear(width_in, width), nn.ReLU(inplace=True), nn.Dropout()]
        self.head = nn.Sequential(*head[:-2])

    def forward(self, images: Tensor) -> Tensor:
        """Float grey images (N, 1, 48, 48) to logits (N, 7)."""
        colour = F.interpolate(images.expand(-1, 3, -1, -1), 224, mode="bilinear")
        return self.head(self.vgg16.avgpool(self.vgg16.features(colour)).flatten(1))


NETWORKS: Final[dict[str, Callable[[], nn.Module]]] = {"traditional": TraditionalVGG16, "ours": EmotionCNN}


def count(network: str) -> dict[str, int]:
    """Parameters, those that the forward pass uses, and multiply-adds of one face, without computing anything.

    Args:
        network: a key of `NETWORKS`.
    """
    with torch.device("meta"):
        model, image = NETWORKS[network]().eval(), torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE)
    with FlopCounterMode(display=False) as counter:
        logits = model(image)
    logits.sum().backward()  # leaves a gradient where the forward pass has been
    parameters = list(model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "used_parameters": sum(parameter.numel() for parameter in parameters if parameter.grad is not None),
        "multiply_adds": counter.get_total_flops() // 2,
    }


def measure(runs: int) -> dict[str, Any]:
    """Time and memory of both networks, training every parameter in use with Adam, and predicting one face.

    Args:
        runs: number of alternating runs.

    Returns:
        The machine, and for each network what `count` gives and, per task, `seconds` per face of each run, `peak`
        resident bytes of the process, and `net`, these without the runtime (Python, PyTorch and its first small step).
    """
    results: dict[str, Any] = {"machine": machine(), "batch": BATCH} | {name: count(name) for name in NETWORKS}
    context = get_context("spawn")
    for task in TASKS:
        workers = {}
        for name in NETWORKS:
            near, far = context.Pipe()
            process = context.Process(target=_work, args=(far, name, task), daemon=True)
            process.start()
            far.close()
            workers[name] = (process, near)
            near.recv()  # one after the other, so that nobody measures while another one starts
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(runs):
            for name, (_, connection) in workers.items():
                connection.send("run")
                seconds[name].append(connection.recv())
        for name, (process, connection) in workers.items():
            connection.send("stop")
            results[name][task] = {"seconds": seconds[name], **connection.recv()}
            process.join()
    return results


def _work(connection: Connection, name: str, task: str) -> None:
    """One process: a run for each message, then its memory."""
    torch.manual_seed(0)
    # The runtime loads parts of itself at the first step.
    _step(nn.Sequential(nn.Conv2d(1, 7, IMAGE_SIZE), nn.Flatten()), task)()
    runtime = memory("VmRSS")
    step = _step(NETWORKS[name](), task)
    step()
    connection.send("ready")
    while connection.recv() == "run":
        connection.send(run(step) / (BATCH if task == "training" else 1))
    peak = memory("VmHWM")
    connection.send({"peak": peak, "net": peak - runtime})


def _step(model: nn.Module, task: str) -> Callable[[], Any]:
    """One training step, or one prediction, as a function."""
    if task == "prediction":
        image = torch.randn(1, 1, IMAGE_SIZE, IMAGE_SIZE)
        model.eval()
        return torch.inference_mode()(lambda: model(image))
    images, targets = torch.randn(BATCH, 1, IMAGE_SIZE, IMAGE_SIZE), torch.arange(BATCH) % len(FER2013_LABELS)
    optimizer = torch.optim.Adam(model.parameters())

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()

    return train


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Ours over the traditional network: parameters, multiply-adds, and the medians of each measured quantity."""
    ours, traditional = results["ours"], results["traditional"]
    shares = {key: ours[key] / traditional[key] for key in ("parameters", "used_parameters", "multiply_adds")}
    for task in TASKS:
        shares |= {f"{task} {key}": ours[task][key] / traditional[task][key] for key in ("net", "peak")}
        shares[f"{task} seconds"] = median(ours[task]["seconds"]) / median(traditional[task]["seconds"])
    return shares


CLAIMS: Final = {"parameters": "97% fewer", "training net": "90% less", "training seconds": "75% faster"}
"""What the notebook that this project began as claimed; it said neither which memory nor how it was measured."""


def table(results: dict[str, Any]) -> str:
    """The results of `measure` as a Markdown table with a line on how they came about."""
    shares, batch = ratios(results), results["batch"]
    rows = {
        "parameters": ("parameters", "{:,}".format),
        "used_parameters": ("parameters in the forward pass", "{:,}".format),
        "multiply_adds": ("multiply-adds per face", lambda value: f"{value / 1e6:,.0f} M"),
        "training net": (f"memory in training, batch of {batch}, without the runtime", _megabytes),
        "training peak": ("the same, whole process", _megabytes),
        "training seconds": ("training, per face", milliseconds),
        "prediction net": ("memory in prediction, without the runtime", _megabytes),
        "prediction peak": ("the same, whole process", _megabytes),
        "prediction seconds": ("prediction of one face", milliseconds),
    }
    lines = ["| | traditional | ours | ours is | claimed by the notebook |", "|---|---:|---:|---:|---|"]
    for key, (title, form) in rows.items():
        values = []
        for name in NETWORKS:
            value: Any = results[name]
            for part in key.split():
                value = value[part]
            values.append(form(value))
        share = shares[key]
        ratio = f"{1 - share:.1%} less" + (f", {1 / share:,.0f} times faster" if key.endswith("seconds") else "")
        lines.append(f"| {title} | {' | '.join(values)} | {ratio} | {CLAIMS.get(key, '')} |")
    runs = len(results["ours"]["training"]["seconds"])
    return "\n".join(lines) + (
        f"\n\nMedian of {runs} alternating runs (smallest to largest) on {results['machine']} in float32; random "
        "weights, every parameter that the forward pass uses is trained, with Adam."
    )


def _megabytes(value: int) -> str:
    return f"{value / 1e6:,.0f} MB"


def plot(results: dict[str, Any], file: str | Path) -> None:
    """Draw ours as a share of the traditional network, a bar per quantity, as a PNG."""
    from matplotlib.figure import Figure

    titles = {
        "parameters": "parameters",
        "multiply_adds": "multiply-adds",
        "training net": "training memory, without the runtime",
        "training seconds": "training time",
        "prediction net": "prediction memory, without the runtime",
        "prediction seconds": "prediction time",
    }
    shares = ratios(results)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(titles.values()), [100] * len(titles), color="#e2e8f0", label="VGG16 on 224x224 pixels")
    bars = axes.barh(
        list(titles.values()), [100 * shares[key] for key in titles], color="#4f46e5", label="ours on 48x48 pixels"
    )
    axes.bar_label(bars, [f"{shares[key]:.1%}" for key in titles], padding=4)
    axes.invert_yaxis()
    axes.set(xlabel="% of the traditional network", xlim=(0, 100))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(file, format="png", dpi=100)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, and write the figures if asked to; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traditional", description=__doc__.splitlines()[0])
    offer_runs(parser, 5)
    offer_to_write(parser, RESULTS)
    options = parser.parse_args(arguments)
    results = measure(options.runs)
    report(table(results), results, RESULTS if options.write else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
