"""One face, one photo and many, as it runs and in plain PyTorch: `python -m benchmarks.prediction`.

With `--data fer2013.csv --votes fer2013new.csv`, the accuracy of every way to compute the network is measured on
PublicTest, and faces are looked for in pictures made of its faces instead of the eight in `examples/`.
"""

import argparse
import copy
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Final

import cv2
import numpy as np
import onnx
import skimage.data
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.live import clip
from benchmarks.measure import alternate, machine, milliseconds
from benchmarks.mtcnn import PlainDetector
from benchmarks.report import offer_runs, offer_to_write, report
from benchmarks.traditional import count
from emotion.data import FaceDataset, load_dataset
from emotion.demo import make_dataset
from emotion.export import build_graph, export_onnx, folded
from emotion.faces import crop_face, open_image
from emotion.follow import overlap
from emotion.labels import IMAGE_SIZE
from emotion.model import EmotionCNN
from emotion.predict import EmotionPredictor
from emotion.runtime import session

RESULTS: Final = Path("benchmarks/results/prediction.json")
"""Where `--write` puts the figures, from the project's folder; `python -m docs.make` draws on them."""
MATRIX: Final = 1024
"""Side of the matrices whose product is what the networks' rate of multiplying and adding is compared with."""
PHOTO_SIDE: Final = 640
FOLDERS: Final = (100, 1000)
"""Pictures in the folders whose difference says how many a second are read."""
FOLDER_RUNS: Final = 3
"""At most so many alternating runs: a thousand pictures take half a minute."""
PICTURES: Final = 40
"""Pictures of twelve faces each in which both detectors look for them."""
PREDICT: Final = """
import sys
from benchmarks.measure import memory
from emotion.__main__ import main
status = main(["predict", sys.argv[1]])
print(memory("VmHWM"))
sys.exit(status)
"""
"""`emotion predict FOLDER`, and the resident bytes at its peak; what the system counts for a child is at least what its
parent had."""
FOUND: Final = 0.35
"""Least intersection over union of a box and the square face that it stands for: a box is narrower than a square."""
TILT: Final = 15.0
"""Standard deviation of the tilt of their faces, in degrees."""
SOURCES: Final = {False: "the eight faces in `examples/`", True: "PublicTest's faces"}
"""What faces the pictures are made of, without and with FER2013."""
SCENERY: Final = ("coffee", "chelsea", "rocket", "brick", "hubble_deep_field", "coins")

FACE_TITLES: Final = {
    "eager": "PyTorch, float32, as it is trained",
    "fused": "PyTorch, batch norms folded, channels last",
    "bfloat16": "the same in bfloat16",
    "int8": "ONNX Runtime, int8 convolutions",
    "onnx": "**ONNX Runtime, float32: what the page and the command line use**",
    "predict": "`EmotionPredictor.predict` of a 48x48 picture, all of it",
}
"""What is measured for one face, and how the table calls it."""


def ways(model: EmotionCNN) -> dict[str, Callable[[Tensor], np.ndarray]]:
    """Every way to compute the network: normalised faces (N, 1, 48, 48) to probabilities (N, C)."""
    with tempfile.TemporaryDirectory() as folder:
        file = export_onnx(model, Path(folder) / "int8.onnx", make_dataset(64).images.numpy())
        runtimes = {"onnx": session(build_graph(model)), "int8": session(onnx.load(file))}
    fused = nn.Sequential(*folded(copy.deepcopy(model))).to(memory_format=torch.channels_last)
    half = copy.deepcopy(fused).to(torch.bfloat16)

    def in_pytorch(network: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], np.ndarray]:
        def compute(faces: Tensor) -> np.ndarray:
            with torch.inference_mode():
                return model.calibrate(network(faces.to(dtype, memory_format=torch.channels_last))).numpy()

        return compute

    def in_onnx(name: str) -> Callable[[Tensor], np.ndarray]:
        return lambda faces: runtimes[name].run(None, {"faces": faces.numpy()})[0]

    return {
        "eager": torch.inference_mode()(lambda faces: model.probabilities(faces).numpy()),
        "fused": in_pytorch(fused, torch.float32),
        "bfloat16": in_pytorch(half, torch.bfloat16),
        "int8": in_onnx("int8"),
        "onnx": in_onnx("onnx"),
    }


def measure_face(predictor: EmotionPredictor, runs: int, dataset: FaceDataset | None) -> dict[str, Any]:
    """Seconds for one face in every way, on an idle machine and beside busy neighbours, and what each way changes."""
    computed = ways(predictor.model)
    crop = make_dataset(1).images[0].numpy()
    face = torch.from_numpy(crop / np.float32(127.5) - 1)[None, None]
    steps: dict[str, Callable[[], Any]] = {name: lambda way=way: way(face) for name, way in computed.items()}
    steps["predict"] = lambda: predictor.predict(crop)
    left, right = torch.randn(2, MATRIX, MATRIX)
    idle = alternate(steps | {"matrix": lambda: left @ right}, runs)
    with neighbours():
        busy = alternate({name: steps[name] for name in ("eager", "onnx", "predict")}, runs)

    faces = make_dataset(70, seed=1)
    results: dict[str, Any] = {"idle": idle, "busy": busy, "difference": {}}
    if dataset is not None:
        results |= {"rows": len(dataset), "accuracy": {}}
    for name, way in computed.items():
        images = (dataset or faces).images[:, None] / 127.5 - 1
        # Where bfloat16 is emulated, ten seconds are enough for it.
        few = images[:70]
        results["difference"][name] = float(np.abs(way(few) - computed["eager"](few)).max())
        if dataset is not None and name in ("eager", "onnx", "int8"):
            answers = np.concatenate([way(part) for part in images.split(64)]).argmax(1)
            results["accuracy"][name] = float((answers == dataset.targets.argmax(1).numpy()).mean())
    results["peak_share"] = (count("ours")["multiply_adds"] / median(idle["onnx"])) / (
        MATRIX**3 / median(idle["matrix"])
    )
    return results


def measure_photo(predictor: EmotionPredictor, runs: int, faces: np.ndarray) -> dict[str, Any]:
    """Seconds from the bytes of a photo with one face to the answer, and the faces that are found in many pictures."""
    photo, plain = portrait(), PlainDetector()

    def first() -> Any:
        image = open_image(photo)
        crops = np.stack([crop_face(image, face) for face in plain.detect(image)])
        with torch.inference_mode():
            return predictor.model.probabilities(torch.from_numpy(crops[:, None] / np.float32(127.5) - 1))

    seconds = alternate({"plain": first, "ours": lambda: predictor.predict(photo)}, runs)
    found = {"plain": [0, 0], "ours": [0, 0]}
    ratios, total = [], 0
    for picture, squares in pictures(faces, PICTURES):
        total += len(squares)
        results = {"plain": plain.detect(picture), "ours": predictor.detector.detect(picture)}
        for name, detected in results.items():
            counts = judge([face.box for face in detected], squares)
            found[name] = [sum(pair) for pair in zip(found[name], counts, strict=True)]
        if results["ours"]:
            ratios += [best(face.box, [other.box for other in results["ours"]]) for face in results["plain"]]
    return {"seconds": seconds, "faces": total, "found": found, "same_box": float(np.median(ratios))}


def measure_folder(runs: int) -> dict[str, Any]:
    """Seconds, and resident bytes at the peak, of `emotion predict` on folders of pictures with one face each."""
    frames = clip()
    results: dict[str, Any] = {"seconds": {str(size): [] for size in FOLDERS}, "peak": {}}
    with tempfile.TemporaryDirectory() as folder:
        for size in FOLDERS:
            os.mkdir(f"{folder}/{size}")
            for number in range(size):
                Path(f"{folder}/{size}/{number}.jpg").write_bytes(frames[number % len(frames)])
        for _ in range(runs):
            for size in FOLDERS:
                start = time.perf_counter()
                command = [sys.executable, "-c", PREDICT, f"{folder}/{size}"]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                results["seconds"][str(size)].append(time.perf_counter() - start)
                results["peak"][str(size)] = int(done.stdout.splitlines()[-1])
    return results


def portrait() -> bytes:
    """A JPEG of `PHOTO_SIDE` pixels with one face."""
    stream = io.BytesIO()
    Image.fromarray(skimage.data.astronaut()).resize((PHOTO_SIDE,) * 2).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def examples() -> np.ndarray:
    """The faces in `examples/`, grey uint8 (N, 48, 48)."""
    return np.stack([np.asarray(Image.open(file)) for file in sorted(Path("examples").glob("*.png"))])


def best(box: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """The largest intersection over union of a box with one of the others; 0 without any."""
    return max((overlap(box, other) for other in others), default=0.0)


def judge(boxes: Sequence[Sequence[float]], squares: Sequence[Sequence[float]]) -> tuple[int, int]:
    """How many of the square faces have a box, and how many boxes stand for none of them."""
    found = sum(best(square, boxes) > FOUND for square in squares)
    return found, sum(best(box, squares) <= FOUND for box in boxes)


def pictures(
    faces: np.ndarray, count: int, tilt: float = TILT
) -> Iterator[tuple[Image.Image, list[tuple[int, int, int, int]]]]:
    """Pictures of 640x480 pixels with twelve faces each, 36 to 150 pixels large and tilted, and their squares.

    Args:
        faces: grey uint8 (N, 48, 48).
        count: number of pictures.
        tilt: standard deviation of the tilt in degrees; the rest is the same with any.
    """
    rng = np.random.default_rng(0)
    for index in range(count):
        scenery = np.asarray(open_image(getattr(skimage.data, SCENERY[index % len(SCENERY)])()))
        pixels, squares = cv2.resize(scenery, (640, 480)), []
        for cell in range(12):
            side = int(rng.uniform(36, 150))
            turn = cv2.getRotationMatrix2D((IMAGE_SIZE / 2,) * 2, rng.normal(0, tilt), side / IMAGE_SIZE)
            turn[:, 2] += (side - IMAGE_SIZE) / 2
            face = rng.choice(faces)
            face = cv2.warpAffine(face, turn, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            x, y = cell % 4 * 160 + rng.integers(160 - side), cell // 4 * 160 + rng.integers(160 - side)
            skin = np.array([1, 0.85, 0.75]) * rng.uniform(0.8, 1)
            pixels[y : y + side, x : x + side] = face[..., None] * skin
            squares.append((int(x), int(y), side, side))
        yield Image.fromarray(pixels), squares


@contextmanager
def neighbours() -> Iterator[None]:
    """Keep all cores but one busy."""
    context = get_context("spawn")
    processes = [context.Process(target=_burn, daemon=True) for _ in range(max(1, (os.cpu_count() or 2) - 1))]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _burn() -> None:
    while True:
        sum(range(10_000))


def measure(runs: int, data: str | None = None, votes: str | None = None) -> dict[str, Any]:
    """Measure one face, one photo and a folder of them with the shipped network.

    Args:
        runs: number of alternating runs.
        data: FER2013 CSV.
        votes: FER+'s votes for it.

    Raises:
        FileNotFoundError: if one of them does not exist.
        ValueError: if one is not what it should be.
    """
    predictor = EmotionPredictor.from_checkpoint()
    dataset = load_dataset(data, "PublicTest", "ferplus", votes) if data else None
    faces = load_dataset(data, "PublicTest", "fer2013").images.numpy() if data else examples()
    return {
        "machine": machine(),
        "runs": runs,
        "data": dataset is not None,
        "face": measure_face(predictor, runs, dataset),
        "photo": measure_photo(predictor, runs, faces),
        "folder": measure_folder(min(runs, FOLDER_RUNS)),
    }


def table(results: Mapping[str, Any]) -> str:
    """The results of `measure` as two Markdown tables with a line on how they came about."""
    face, photo = results["face"], results["photo"]
    idle, busy, accuracy = face["idle"], face["busy"], face.get("accuracy", {})
    lines = [
        "| one face | time | against PyTorch | beside a busy neighbour | largest difference | accuracy |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, title in FACE_TITLES.items():
        speed = median(idle["eager"]) / median(idle[name])
        beside = milliseconds(busy[name]) if name in busy else ""
        difference = f"{face['difference'][name]:.0e}" if face["difference"].get(name) else ""
        share = f"{accuracy[name]:.2%}" if name in accuracy else ""
        lines.append(
            f"| {title} | {milliseconds(idle[name])} | {speed:.1f} times | {beside} | {difference} | {share} |"
        )
    speed = median(photo["seconds"]["plain"]) / median(photo["seconds"]["ours"])
    lines += [
        "",
        f"| one photo of {PHOTO_SIDE} x {PHOTO_SIDE} pixels, one face | from bytes to answer | faces found of "
        f"{photo['faces']} | false boxes |",
        "|---|---:|---:|---:|",
    ]
    titles = {"plain": "the detector in plain PyTorch", "ours": f"**now: {speed:.1f} times as fast**"}
    for name, title in titles.items():
        found, false = photo["found"][name]
        lines.append(f"| {title} | {milliseconds(photo['seconds'][name])} | {found} | {false} |")
    small, large = FOLDERS
    peak, folder_runs = results["folder"]["peak"], len(results["folder"]["seconds"][str(small)])
    lines += [
        "",
        "| many photos, `python -m emotion predict FOLDER` | |",
        "|---|---:|",
        f"| pictures of one face each in a folder | {folder_rate(results['folder'])} |",
        f"| memory at the peak, with {small:,} and with {large:,} of them | {peak[str(small)] / 1e6:,.0f} MB, "
        f"{peak[str(large)] / 1e6:,.0f} MB |",
    ]
    source = SOURCES[results["data"]]
    rows = (
        f" Accuracy: top-1 on the {face['rows']:,} rows of PublicTest with a majority of votes, one view."
        if accuracy
        else ""
    )
    lines += [
        "",
        f"Median of {results['runs']} alternating runs (smallest to largest; {folder_runs} of the folders) on "
        f"{results['machine']}. Differences are "
        f"of probabilities, from PyTorch's float32.{rows} ONNX Runtime's float32 multiplies and adds at "
        f"{face['peak_share']:.0%} of the rate of a product of two {MATRIX} x {MATRIX} matrices. Faces were looked for "
        f"in {PICTURES} pictures of {photo['faces'] // PICTURES} faces each, made of {source}; half of the boxes of "
        f"the two overlap by {photo['same_box']:.1%} or more.",
    ]
    return "\n".join(lines)


def folder_rate(folder: Mapping[str, Any]) -> str:
    """How many pictures a second a folder takes, and how long before the first, from what `measure_folder` gives."""
    small, large = FOLDERS
    runs = list(zip(folder["seconds"][str(small)], folder["seconds"][str(large)], strict=True))
    rates = [(large - small) / (more - less) for less, more in runs]
    before = median(less - small / rate for (less, _), rate in zip(runs, rates, strict=True))
    return f"{median(rates):.1f} a second ({min(rates):.1f} to {max(rates):.1f}), {before:.1f} s after the start"


def plot(results: Mapping[str, Any], file: str | Path) -> None:
    """Draw the time of one face and of one photo, a bar each, as a PNG."""
    from matplotlib.figure import Figure

    idle, photo = results["face"]["idle"], results["photo"]["seconds"]
    shown = {
        "One face": {
            "PyTorch": idle["eager"],
            "PyTorch, folded": idle["fused"],
            "ONNX Runtime, int8": idle["int8"],
            "ONNX Runtime": idle["onnx"],
            "all of predict": idle["predict"],
        },
        f"One photo of {PHOTO_SIDE} pixels": {"in plain PyTorch": photo["plain"], "now": photo["ours"]},
    }
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, (title, bars) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        values = [1000 * median(seconds) for seconds in bars.values()]
        colours = ["#4f46e5" if name in ("ONNX Runtime", "all of predict", "now") else "#cbd5e1" for name in bars]
        drawn = axes.barh(list(bars), values, color=colours)
        axes.bar_label(drawn, [f"{value:.1f} ms" for value in values], padding=4)
        axes.invert_yaxis()
        axes.set(title=title, xlabel="milliseconds", xlim=(0, 1.25 * max(values)))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, format="png", dpi=100)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables, and write the figures if asked to; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction", description=__doc__.splitlines()[0])
    offer_runs(parser, 5)
    parser.add_argument("--data", metavar="CSV", help="FER2013: measure accuracy too, and look for its faces")
    parser.add_argument("--votes", metavar="CSV", help="FER+'s votes, with --data")
    offer_to_write(parser, RESULTS)
    options = parser.parse_args(arguments)
    if bool(options.data) != bool(options.votes):
        parser.error("One of --data and --votes is missing; give both or none.")
    results = measure(options.runs, options.data, options.votes)
    report(table(results), results, RESULTS if options.write else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
