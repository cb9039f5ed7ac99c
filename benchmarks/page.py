"""How soon the page answers a photo in a browser, and the memory it takes: `python -m benchmarks.page PHOTO`."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil
from playwright.sync_api import sync_playwright

APP = Path(__file__).resolve().parents[1] / "app.py"
PATIENCE = 120_000
"""Milliseconds."""
SETTLING = 2000
"""Milliseconds from a page's first sight to the photo: nobody chooses one sooner."""
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def measure(photo: Path, runs: int) -> dict[str, float]:
    """Serve the page with app.py, give it a photo in Chromium, and time what a visitor waits for.

    Args:
        photo: a picture with a face.
        runs: how many visitors there are, each with a page of their own; there is one more before them.

    Returns:
        Seconds from the start of app.py to the first visitor's answer, median and longest of the other visitors'
        seconds from their choice of a file to the answer on the page, and the server's resident MiB after the last.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "-u", str(APP), "--host", "127.0.0.1"],
            env=os.environ | {"GRADIO_TEMP_DIR": folder},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            url = next(line for line in server.stdout if "local URL" in line).split()[-1]
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
                waits = []
                for _ in range(runs + 1):
                    page = browser.new_page()
                    page.set_default_timeout(PATIENCE)
                    page.goto(url)
                    chooser = page.locator("#photo-input input[type=file]")
                    chooser.wait_for(state="attached")
                    page.wait_for_timeout(SETTLING)
                    given = time.perf_counter()
                    chooser.set_input_files(photo)
                    page.locator("#photo-result .face").first.wait_for()
                    answered = time.perf_counter()
                    waits.append(answered - (given if waits else started + SETTLING / 1000))
                    page.close()
                browser.close()
            resident = psutil.Process(server.pid).memory_info().rss
        finally:
            server.terminate()
            server.wait()
    first, *others = waits
    return {"start": first, "median": median(others), "longest": max(others), "memory": resident / 2**20}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("photo", type=Path, help="a picture with a face")
    parser.add_argument("--runs", type=int, default=10, metavar="NUMBER", help="visitors (default: 10)")
    options = parser.parse_args(arguments)
    found = measure(options.photo, options.runs)
    print(f"from the start of app.py to the first answer  {found['start']:6.2f} s")
    print(f"from the choice of a photo to its answer      {found['median']:6.2f} s (median of {options.runs})")
    print(f"                                              {found['longest']:6.2f} s (the longest)")
    print(f"memory of the server                          {found['memory']:6.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
