"""The page with one and with four cameras at once: `python -m benchmarks.live`.

`app.py` runs in a process of its own, and anew for every run. A camera shows the next frame as soon as the one before
is answered: how many a second that makes is what the server can do.
"""

import argparse
import asyncio
import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final
from uuid import uuid4

import numpy as np
import skimage.data
from PIL import Image

from benchmarks.load import Page, body, data_url, messages, served
from benchmarks.measure import memory, processor
from benchmarks.report import offer_runs, offer_to_write, report

RESULTS: Final = Path("benchmarks/results/live.json")
"""Where `--write` puts the figures, from the project's folder; `python -m docs.make` draws on them."""
CAMERAS: Final = (1, 4)
"""Cameras at once; four is what the page answers at the same time."""
SECONDS: Final = 10.0
"""How long they run."""
FRAMES: Final = 48
"""Frames until the face is back where it was."""


def clip() -> list[bytes]:
    """JPEGs of 640x480 pixels with one face, 90 pixels wide, that goes round at a few pixels a frame."""
    background = Image.fromarray(skimage.data.coffee()).resize((640, 480))
    person = Image.fromarray(skimage.data.astronaut()).crop((150, 30, 310, 210))
    frames = []
    for angle in np.linspace(0, 2 * np.pi, FRAMES, endpoint=False):
        frame, stream = background.copy(), io.BytesIO()
        frame.paste(person, (round(240 + 60 * np.sin(angle)), round(150 + 40 * np.cos(angle))))
        frame.save(stream, "JPEG")
        frames.append(stream.getvalue())
    return frames


async def show(page: Page, number: int, frames: Sequence[str], seconds: float) -> list[float]:
    """Show one frame after the other for some seconds; the seconds that each answer took, in order.

    Args:
        page: where to.
        number: which visitor this is.
        frames: as data URLs.
        seconds: how long, from the first answer on, which is left out.

    Raises:
        RuntimeError: if the page answers with an error.
    """
    session, took = uuid4().hex, []
    async with page.client(number) as client:
        asked = body(page.camera, session, [{"url": frames[0]}, page.network, None])
        event = (await client.post("queue/join", json=asked)).raise_for_status().json()["event_id"]
        start = end = None
        async for message in messages(client, session):
            if not message.get("success", True):
                raise RuntimeError(f"The page answered {str(message)[:300]}.")
            if message["msg"] != "process_streaming":
                continue
            now = time.monotonic()
            if start is None:
                end = now + seconds
            else:
                took.append(now - start)
            if now >= end:
                await client.post(f"stream/{event}/close", json={})
                return took
            start = now
            frame = {"url": frames[(len(took) + 1) % len(frames)]}
            await client.post(f"stream/{event}", json=asked | {"data": [frame, page.network, None]})
    raise RuntimeError("The page hung up.")


def watch(url: str, cameras: int, seconds: float) -> list[list[float]]:
    """What each of several cameras at once has to wait for every answer, in seconds."""
    page, frames = Page.at(url), [data_url(frame) for frame in clip()]

    async def together() -> list[list[float]]:
        return await asyncio.gather(*(show(page, number, frames, seconds) for number in range(cameras)))

    return asyncio.run(together())


def measure(runs: int, seconds: float = SECONDS) -> dict[str, Any]:
    """Start the page and show it cameras, several times.

    Args:
        runs: how often.
        seconds: how long each number of cameras runs.

    Returns:
        The machine; of each run the server's resident bytes after the cameras; and for each number of cameras and run,
        the seconds of every answer to every camera.
    """
    results: dict[str, Any] = {
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
        "seconds": seconds,
        **{"memory": [], "cameras": {str(cameras): [] for cameras in CAMERAS}},
    }
    for _ in range(runs):
        with served() as (url, process):
            for cameras in CAMERAS:
                results["cameras"][str(cameras)].append(watch(url, cameras, seconds))
            results["memory"].append(memory("VmRSS", process))
    return results


def table(results: Mapping[str, Any]) -> str:
    """The results of `measure` as a Markdown table with a line on how they came about."""
    lines = [
        "| cameras at once | frames a second, each | slowest to fastest camera | answer, p50 | p95 | p95 of the last "
        "third over the first |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for cameras, runs in results["cameras"].items():
        rates = [[len(answers) / sum(answers) for answers in run] for run in runs]
        answers = [np.concatenate(run) for run in runs]
        middle, late = (median(float(np.percentile(run, share)) for run in answers) for share in (50, 95))
        growth = median(
            np.percentile(np.concatenate([one[2 * len(one) // 3 :] for one in run]), 95)
            / np.percentile(np.concatenate([one[: len(one) // 3] for one in run]), 95)
            for run in runs
        )
        each = [median(rate) for rate in rates]
        spread = [min(map(min, rates)), max(map(max, rates))]
        lines.append(
            f"| {cameras} | {median(each):.1f} ({min(each):.1f} to {max(each):.1f}) | {spread[0]:.1f} to "
            f"{spread[1]:.1f} | {1000 * middle:.0f} ms | {1000 * late:.0f} ms | {growth:.2f} |"
        )
    used = [value / 1e6 for value in results["memory"]]
    lines += [
        "",
        f"Medians of {len(used)} runs (smallest to largest) of {results['seconds']:.0f} seconds on "
        f"{results['machine']}, which the cameras share; frames of 640 x 480 pixels with one moving face. Resident "
        f"memory of the server afterwards: {median(used):,.0f} MB ({min(used):,.0f} to {max(used):,.0f}).",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, and write the figures if asked to; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__.splitlines()[0])
    offer_runs(parser, 3)
    offer_to_write(parser, RESULTS)
    options = parser.parse_args(arguments)
    results = measure(options.runs)
    report(table(results), results, RESULTS if options.write else None, indent=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
