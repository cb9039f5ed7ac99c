"""How many faces a second are trained on: `python -m benchmarks.training`.

Plain is what one writes first: float32, PyTorch's own order of memory, 48x48 pixels, no augmentation. Against it stands
what `emotion.trainer` does: channels last, bfloat16 where the processor computes in it, augmentation, averaged weights,
and the recipe's smaller pictures in its earlier epochs.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, repeat
from multiprocessing import get_context
from pathlib import Path
from statistics import harmonic_mean, median
from typing import Any, Final

import torch
import torch.nn.functional as F

from benchmarks.measure import alternate, machine, milliseconds, run
from benchmarks.prediction import MATRIX
from benchmarks.report import offer_runs, offer_to_write, report
from benchmarks.traditional import count
from emotion.data import FaceDataset
from emotion.labels import FER2013_LABELS, IMAGE_SIZE
from emotion.model import EmotionCNN
from emotion.recipes import RECIPES
from emotion.trainer import FaceLoader, _precision, averaging
from emotion.transforms import get_enhanced_transforms_grayscale_48

RESULTS: Final = Path("benchmarks/results/training.json")
"""Where `--write` puts the figures, from the project's folder; `python -m docs.make` draws on them."""
RECIPE: Final = RECIPES["single"][0]
BATCHES: Final = (16, 32, 128)
"""Faces per step, besides the recipe's."""
IMAGES: Final = (1_000, 10_000, 30_000)
"""Faces that a batch is drawn from."""
PROCESSES: Final = 2
PROCESS_SECONDS: Final = 5.0
"""How long they train, side by side."""
DEVICE: Final = "cuda" if torch.cuda.is_available() else "cpu"


def step(batch: int, size: int = IMAGE_SIZE, plain: bool = False) -> Callable[[], Any]:
    """One training step on random pictures, as a function.

    Args:
        batch: faces in it.
        size: side of the pictures in pixels.
        plain: without what the trainer does.
    """
    torch.manual_seed(0)
    layout = torch.contiguous_format if plain else torch.channels_last
    model = EmotionCNN(dropout_rate=RECIPE.dropout_rate).to(DEVICE, memory_format=layout)
    decay = 0.0 if plain else RECIPE.weight_decay
    optimizer = torch.optim.SGD(model.parameters(), RECIPE.learning_rate, 0.9, weight_decay=decay, nesterov=True)
    _, average = averaging(model, RECIPE.ema_decay)
    faces = torch.randint(0, 256, (batch, 1, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, device=DEVICE)
    targets = torch.arange(batch, device=DEVICE) % len(FER2013_LABELS)
    augment, generator = augmentation()
    half = not plain and _precision(RECIPE) == "bfloat16"

    def train() -> None:
        images = faces / 127.5 - 1 if plain else augment(faces, RECIPE.augmentation[1], generator)
        if size != IMAGE_SIZE:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        if not plain:
            average()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return train


def augmentation() -> tuple[Callable[..., torch.Tensor], torch.Generator]:
    """The training pipeline, and its source of randomness."""
    return get_enhanced_transforms_grayscale_48(training=True), torch.Generator().manual_seed(0)


def batches(images: int) -> Callable[[], Any]:
    """Drawing the next batch from so many faces and augmenting it, as a function."""
    targets = torch.eye(len(FER2013_LABELS))[torch.arange(images) % len(FER2013_LABELS)]
    faces = torch.randint(0, 256, (images, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    loader = FaceLoader(FaceDataset(faces, targets, FER2013_LABELS), RECIPE.batch_size, augmentation()[0], DEVICE, True)
    drawn = chain.from_iterable(repeat(loader))
    return lambda: next(drawn)


def rate(threads: int) -> float:
    """Faces a second that this process trains on with so many threads."""
    torch.set_num_threads(threads)
    train = step(RECIPE.batch_size)
    train()
    return RECIPE.batch_size / run(train, PROCESS_SECONDS)


def measure(runs: int) -> dict[str, Any]:
    """Seconds per step, of the trainer at each size of the recipe and with each batch size, of the plain way, of the
    augmentation alone, of batches drawn from few and many faces, of a product of matrices, and of one thread alone;
    and the faces a second of several processes together, which do not exchange their gradients.

    Args:
        runs: number of alternating runs.
    """
    batch = RECIPE.batch_size
    sizes = {f"{size} pixels": step(batch, size) for size in sorted(set(RECIPE.image_sizes))}
    grown = {f"batch {count}": step(count) for count in BATCHES}
    faces = torch.randint(0, 256, (batch, 1, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, device=DEVICE)
    augment, generator = augmentation()
    left, right = torch.randn(2, MATRIX, MATRIX, device=DEVICE)

    def product() -> None:
        left @ right
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    alone = {"augmentation": lambda: augment(faces, RECIPE.augmentation[1], generator), "matrix": product}
    drawn = {f"{images} images": batches(images) for images in IMAGES}
    seconds = alternate({"plain": step(batch, plain=True)} | sizes | grown | alone | drawn, runs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds["one thread"] = alternate({"": step(batch)}, runs)[""]
    torch.set_num_threads(threads)
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        together = sum(pool.map(rate, [max(1, threads // PROCESSES)] * PROCESSES))
    return {
        **{"machine": machine(), "precision": _precision(RECIPE), "threads": threads},
        **{"seconds": seconds, "processes": together},
    }


def table(results: Mapping[str, Any]) -> str:
    """The results of `measure` as Markdown tables with a line on how they came about."""
    seconds, batch = results["seconds"], RECIPE.batch_size
    rates = {name: batch / median(values) for name, values in seconds.items()}
    grown = {count: count / median(seconds[f"batch {count}"]) for count in BATCHES}
    grown = dict(sorted((grown | {batch: rates[f"{IMAGE_SIZE} pixels"]}).items()))
    recipe = harmonic_mean([rates[f"{size} pixels"] for size in RECIPE.image_sizes])
    share = median(seconds["augmentation"]) / median(seconds[f"{IMAGE_SIZE} pixels"])
    # One product forward, two backward: with the weights, and with what came in.
    passes = 3 * count("ours")["multiply_adds"]
    peak = passes * rates["plain"] * median(seconds["matrix"]) / MATRIX**3
    drawing = "; ".join(
        f"a batch drawn from {images:,} and augmented takes {milliseconds(seconds[f'{images} images'])}"
        for images in IMAGES
    )
    lines = ["| training | a step | faces a second | against plain |", "|---|---:|---:|---:|"]
    titles = {"plain": "plain: float32, 48 pixels, no augmentation"}
    titles |= {f"{size} pixels": f"the trainer, {size} pixels" for size in sorted(set(RECIPE.image_sizes))[::-1]}
    for name, title in titles.items():
        speed = rates[name] / rates["plain"]
        lines.append(f"| {title} | {milliseconds(seconds[name])} | {rates[name]:,.0f} | {speed:.2f} times |")
    sizes = ", ".join(map(str, RECIPE.image_sizes))
    lines += [
        f"| **the recipe `single`, an equal share of {sizes} pixels** | | **{recipe:,.0f}** | "
        f"**{recipe / rates['plain']:.2f} times** |",
        "",
        f"| faces per step | {' | '.join(map(str, grown))} | {batch}, one thread | {batch}, {PROCESSES} processes that "
        "share the threads |",
        "|---|" + "---:|" * (len(grown) + 2),
        f"| faces a second | {' | '.join(f'{value:,.0f}' for value in grown.values())} | {rates['one thread']:,.0f} | "
        f"{results['processes']:,.0f} |",
        "",
        f"Median of {len(seconds['plain'])} alternating runs (smallest to largest) of steps of {batch} faces on "
        f"{results['machine']}; the trainer computes in {results['precision']} there. Augmentation is {share:.1%} of a "
        f"step of {IMAGE_SIZE} pixels. Plain training already multiplies and adds at {peak:.0%} of the rate of a "
        f"product of two {MATRIX} x {MATRIX} matrices. All faces lie in memory: "
        f"{drawing}. The processes did not exchange gradients.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables, and write the figures if asked to; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    offer_runs(parser, 3)
    offer_to_write(parser, RESULTS)
    options = parser.parse_args(arguments)
    results = measure(options.runs)
    report(table(results), results, RESULTS if options.write else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
