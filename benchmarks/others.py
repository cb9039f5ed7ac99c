"""This project and the package `fer`, side by side: `python -m benchmarks.others --python fer-env/bin/python`.

`fer` (github.com/justinshenk/fer) needs TensorFlow, and an environment of its own:

    python -m venv fer-env
    fer-env/bin/pip install "tensorflow-cpu==2.21.*" "opencv-python-headless<5" "setuptools<82" pillow requests
    fer-env/bin/pip install --no-deps fer==25.10.3

OpenCV 5 ships no Haar cascades. What `fer` asks for beyond that, video and another face detector use, not what is
measured here: its defaults, OpenCV's Haar cascade and mini-XCEPTION in TensorFlow Lite. With `--data fer2013.csv`,
faces are looked for in pictures made of PublicTest's faces instead of the eight in `examples/`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks import prediction
from benchmarks.live import clip
from benchmarks.measure import alternate, memory, milliseconds, processor
from benchmarks.report import offer_runs, offer_to_write, report
from emotion.data import load_dataset
from emotion.faces import MIN_FACE

RESULTS: Final = Path("benchmarks/results/others.json")
"""Where `--write` puts the figures, from the project's folder; `python -m docs.make` draws on them."""
LOOP: Final = 24
"""Pictures that are read one after the other."""
LARGE: Final = 60
"""Side in pixels of a face that is surely large enough for `fer`, which looks for boxes of 50 and more."""
TILTS: Final = {"tilted": prediction.TILT, "upright": 0.0}
"""Standard deviation of the faces' tilt in degrees."""


class Recogniser:
    """A recogniser in a process of its own, which `close` ends; see `benchmarks.recogniser`.

    Args:
        python: interpreter.
        name: "fer" or "ours".
        folder: where what it complains about is written.

    Raises:
        ValueError: if there is no such interpreter, or it cannot run the recogniser.
    """

    def __init__(self, python: str, name: str, folder: str | Path) -> None:
        self._called = f"'{python}' cannot run {name}"
        self._log = Path(folder, f"{name}.log")
        command = [python, "-m", "benchmarks.recogniser", name]
        with self._log.open("w") as log:
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                )
            except OSError as error:
                raise self._problem(error.strerror) from None
        try:
            self.versions: str = self._answer()
        except ValueError:
            self.close()
            raise

    def look(self, files: Sequence[str]) -> list[list[list[float]]]:
        """Boxes in each of some pictures: x, y, width and height.

        Raises:
            ValueError: if the process ends meanwhile.
        """
        self._process.stdin.write(json.dumps(files) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def peak(self) -> int:
        """Resident bytes at the peak."""
        return memory("VmHWM", self._process.pid)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> Any:
        try:
            return json.loads(self._process.stdout.readline())
        except json.JSONDecodeError:
            *_, why = ["it does not say why", *self._log.read_text(errors="replace").splitlines()]
        raise self._problem(why)

    def _problem(self, why: str) -> ValueError:
        return ValueError(
            f"{self._called} ({why}); give the interpreter of an environment made with the three commands of "
            "`python -m benchmarks.others --help`."
        )


def measure(python: str, runs: int, data: str | None = None) -> dict[str, Any]:
    """Measure one photo, a loop over pictures, and what is found in pictures of twelve faces.

    Args:
        python: interpreter with the package `fer`.
        runs: number of alternating runs.
        data: FER2013 CSV.

    Raises:
        FileNotFoundError: if there is no such CSV.
        ValueError: if it is not FER2013's, if there is no such interpreter, or if that cannot run `fer`.
    """
    faces = load_dataset(data, "PublicTest", "fer2013").images.numpy() if data else prediction.examples()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Recogniser(python, "fer", folder)) as fer,
        closing(Recogniser(sys.executable, "ours", folder)) as ours,
    ):
        both = {"fer": fer, "ours": ours}
        photo = Path(folder, "photo.jpg")
        photo.write_bytes(prediction.portrait())
        loop = []
        frames = clip()
        for number, frame in enumerate(frames[:: len(frames) // LOOP]):
            loop.append(f"{folder}/{number}.jpg")
            Path(loop[-1]).write_bytes(frame)
        seconds = {
            name: alternate({key: lambda one=one, files=files: one.look(files) for key, one in both.items()}, runs)
            for name, files in (("photo", [str(photo)]), ("loop", loop))
        }
        return {
            "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
            "data": bool(data),
            "versions": f"{fer.versions}; {ours.versions}",
            "seconds": seconds,
            "faces": {name: count(both, faces, tilt, folder) for name, tilt in TILTS.items()},
            "peak": {key: one.peak() for key, one in both.items()},
        }


def count(recognisers: Mapping[str, Recogniser], faces: np.ndarray, tilt: float, folder: str) -> dict[str, Any]:
    """How many faces there are in pictures of twelve, all and large ones, and how many of them each recogniser finds.

    Args:
        recognisers: by name.
        faces: of what the pictures are made, grey uint8 (N, 48, 48).
        tilt: of the faces, the standard deviation in degrees.
        folder: where the pictures are written.
    """
    files, wanted = [], []
    for number, (picture, squares) in enumerate(prediction.pictures(faces, prediction.PICTURES, tilt)):
        files.append(f"{folder}/{tilt:g}-{number}.png")
        picture.save(files[-1])
        wanted.append(squares)
    large = [[square for square in squares if square[2] >= LARGE] for squares in wanted]
    results: dict[str, Any] = {"all": sum(map(len, wanted)), "large": sum(map(len, large)), "found": {}}
    for name, recogniser in recognisers.items():
        boxes = recogniser.look(files)
        found, false = zip(*map(prediction.judge, boxes, wanted), strict=True)
        of_large = sum(prediction.judge(*pair)[0] for pair in zip(boxes, large, strict=True))
        results["found"][name] = {"all": sum(found), "large": of_large, "false": sum(false)}
    return results


def table(results: Mapping[str, Any]) -> str:
    """The results of `measure` as a Markdown table with a line on how they came about."""
    photo, loop, peak = results["seconds"]["photo"], results["seconds"]["loop"], results["peak"]
    side = prediction.PHOTO_SIDE
    rates = {name: [LOOP / value for value in values] for name, values in loop.items()}
    shown = {name: f"{median(rate):.1f} ({min(rate):.1f} to {max(rate):.1f})" for name, rate in rates.items()}
    speeds = [median(seconds["fer"]) / median(seconds["ours"]) for seconds in (photo, loop)]
    lines = [
        "| | `fer` | ours | ours is |",
        "|---|---:|---:|---|",
        f"| one photo of {side} x {side} pixels, one face, from its file to the answer | {milliseconds(photo['fer'])} "
        f"| {milliseconds(photo['ours'])} | {speeds[0]:.1f} times as fast |",
        f"| pictures of 640 x 480 pixels, one face each, a second | {shown['fer']} | {shown['ours']} | {speeds[1]:.1f} "
        "times as fast |",
    ]
    for name, faces in results["faces"].items():
        found = faces["found"]
        titles = {
            "all": f"faces found of {faces['all']}, {name}",
            "large": f"the same, of the {faces['large']} of {LARGE} pixels and more",
            "false": f"false boxes, {name}",
        }
        for key, title in titles.items():
            lines.append(f"| {title} | {found['fer'][key]} | {found['ours'][key]} | |")
    lines += [
        f"| memory of the process at the peak | {peak['fer'] / 1e6:,.0f} MB | {peak['ours'] / 1e6:,.0f} MB | "
        f"{peak['ours'] / peak['fer']:.1f} times as much |",
        "",
        f"Median of {len(photo['ours'])} alternating runs (smallest to largest) on {results['machine']}; "
        f"{results['versions']}. `fer` with its defaults, which look for faces of 50 pixels and more; ours for "
        f"{MIN_FACE}. The rates are of {LOOP} pictures, for `fer` one by one, as its documentation does, for ours as "
        f"`emotion predict` does. Faces were looked for in {prediction.PICTURES} pictures of twelve, 36 to 150 pixels "
        f"large, made of {prediction.SOURCES[results['data']]}; tilted: by {prediction.TILT:.0f} degrees (standard "
        "deviation).",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, and write the figures if asked to; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.others",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", required=True, metavar="PATH", help="interpreter with the package `fer`")
    offer_runs(parser, 5)
    parser.add_argument("--data", metavar="CSV", help="FER2013: look for its faces, not those in examples/")
    offer_to_write(parser, RESULTS)
    options = parser.parse_args(arguments)
    try:
        results = measure(options.python, options.runs, options.data)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    report(table(results), results, RESULTS if options.write else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
