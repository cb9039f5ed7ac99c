"""The page's start, its first answers in a browser, and its memory: `python -m benchmarks.page`."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from playwright.sync_api import sync_playwright

from benchmarks.load import APP, photo
from benchmarks.measure import memory, processor
from benchmarks.report import count, offer_runs, offer_to_write, report

RESULTS: Final = Path("benchmarks/results/page.json")
"""Where `--write` puts the figures, from the project's folder; `python -m docs.make` draws on them."""
PARTS: Final = {
    "PyTorch": "import torch",
    "this package, ONNX Runtime, OpenCV": "from emotion.networks import load_networks",
    "the networks that ship, and the detector": "networks = load_networks()",
    "Gradio": "import gradio",
    "the page": "from emotion.ui import build_page, launch_options; page = build_page(networks)",
    "its server": "page.launch(**launch_options(), prevent_thread_lock=True, quiet=True)",
}
"""What `app.py` does before it answers, in its order; the first contains the start of Python."""
START_PARTS: Final = """
import json, os, sys
from time import time
from benchmarks.measure import memory
parts, before = [], float(sys.argv[2])
for part in json.loads(sys.argv[1]):
    exec(part)
    parts.append((time() - before, memory("VmRSS")))
    before = time()
print(json.dumps(parts), flush=True)
os._exit(0)
"""
PATIENCE: Final = 120_000
"""Milliseconds."""
SETTLING: Final = 2000
"""Milliseconds from a page's first sight to the photo: nobody chooses one sooner."""
FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def start() -> list[tuple[float, int]]:
    """Seconds that each of `PARTS` takes in a new process, and its resident bytes afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", START_PARTS, json.dumps(list(PARTS.values())), str(time.time())]
        environment = os.environ | {"GRADIO_TEMP_DIR": folder}
        done = subprocess.run(command, env=environment, cwd=APP.parent, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def visit(picture: Path, visitors: int) -> tuple[float, list[float], int]:
    """Serve the page with app.py, give it a photo in Chromium, and time what a visitor waits for.

    Args:
        picture: a photo with a face.
        visitors: how many there are, each with a page of their own; there is one more before them.

    Returns:
        Seconds from the start of app.py to the first visitor's answer, without the two in which the visitor looks for
        a photo; of the others, from the choice of a file to the answer on the page; and the server's resident bytes
        while the last page is still open.
    """
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        started = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "-u", str(APP), "--host", "127.0.0.1"],
            env=os.environ | {"GRADIO_TEMP_DIR": folder},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            url = next((line for line in server.stdout if "local URL" in line), "").rpartition(" ")[2].strip()
            if not url:
                raise RuntimeError(f"app.py ended with {server.wait()}.")
            waits = []
            for _ in range(visitors + 1):
                page = browser.new_page()
                page.set_default_timeout(PATIENCE)
                page.goto(url)
                chooser = page.locator("#photo-input input[type=file]")
                chooser.wait_for(state="attached")
                page.wait_for_timeout(SETTLING)
                given = time.perf_counter()
                chooser.set_input_files(picture)
                page.locator("#photo-result .face").first.wait_for()
                answered = time.perf_counter()
                waits.append(answered - (given if waits else started + SETTLING / 1000))
                resident = memory("VmRSS", server.pid)
                page.close()
            browser.close()
        finally:
            server.terminate()
            server.wait()
    return waits[0], waits[1:], resident


def measure(runs: int, visitors: int) -> dict[str, Any]:
    """Start the page and visit it, several times.

    Args:
        runs: how often.
        visitors: how many give a photo in each run, after the first.

    Returns:
        JSON-ready: the machine, and what `start` and `visit` return, a list each with a value per run.
    """
    results: dict[str, Any] = {"machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores", "parts": []}
    results |= {"first": [], "waits": [], "memory": []}
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "photo.jpg"
        picture.write_bytes(photo(640))
        for _ in range(runs):
            results["parts"].append(start())
            for name, value in zip(("first", "waits", "memory"), visit(picture, visitors), strict=True):
                results[name].append(value)
    return results


def table(results: Mapping[str, Any]) -> str:
    """The results of `measure` as a Markdown table with a line on how they came about."""

    def seconds(values: Sequence[float]) -> str:
        return f"{median(values):.1f} s ({min(values):.1f} to {max(values):.1f})"

    def megabytes(values: Sequence[int]) -> str:
        return f"{median(values) / 1e6:,.0f} MB"

    lines = ["| from the start of `app.py` | time | memory of the server afterwards |", "|---|---:|---:|"]
    for title, runs in zip(PARTS, zip(*results["parts"], strict=True), strict=True):
        times, sizes = zip(*runs, strict=True)
        lines.append(f"| {title} | {seconds(times)} | {megabytes(sizes)} |")
    waits = [wait for run in results["waits"] for wait in run]
    lines += [
        f"| **to the first answer to a photo in a browser, all in all** | {seconds(results['first'])} | |",
        f"| another visitor, from the choice of a photo to its answer | {median(waits):.2f} s "
        f"({min(waits):.2f} to {max(waits):.2f}) | **{megabytes(results['memory'])}** |",
        "",
        f"Medians of {len(results['first'])} starts (smallest to largest), with {len(results['waits'][0])} more "
        f"visitors each, on {results['machine']}, which the browser shares; all files are in the system's cache. The "
        f"{SETTLING / 1000:.0f} seconds that each visitor takes to look for a photo are not counted.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, and write the figures if asked to; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    offer_runs(parser, 3)
    parser.add_argument(
        "--visitors", type=count, default=10, metavar="NUMBER", help="with a photo each (default: %(default)s)"
    )
    offer_to_write(parser, RESULTS)
    options = parser.parse_args(arguments)
    if not shutil.which("chromium"):
        parser.error("Chromium is not installed; install it, as with 'apt-get install chromium'.")
    results = measure(options.runs, options.visitors)
    report(table(results), results, RESULTS if options.write else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
