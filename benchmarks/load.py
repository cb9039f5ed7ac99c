"""Many visitors of the page at once: `python -m benchmarks.load`.

`app.py` runs in a process of its own, with the limits that hold without any setting. The visitors are coroutines of
this one, each with an address of its own (127.0.1.x), and speak as a browser does: an event joins the queue, its
answers come back as server-sent events, a camera's frames are posted beside them. Some visitors behave badly.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import numpy as np
from PIL import Image

from benchmarks.measure import memory, processor
from benchmarks.report import offer_to_write, report

RESULTS: Final = Path("benchmarks/results/load.json")
"""Where `--write` puts the figures, from the project's folder; `python -m docs.make` draws on them."""
APP: Final = Path(__file__).resolve().parents[1] / "app.py"
FACES: Final = ("happy", "surprise", "sad")
"""Whose faces of `examples/` are in the photos."""
CAMERA_SHARE: Final = 0.2
"""Of the visitors; the others give photos."""
FRAME_SECONDS: Final = 0.1
PATIENCE: Final = 600.0
"""Seconds after which an answer counts as an error."""
SETTLED: Final = 1.05
"""Memory afterwards, as a share of what it was before, that counts as back."""


@dataclass
class Visitor:
    """What one visitor saw.

    Attributes:
        waits: seconds from giving a photo to its answer; for a camera, from joining the queue to the first answer.
        gaps: seconds between two answers of a camera's turn.
        busy: how often the answer was "busy, try again".
        errors: whatever else was not an answer.
    """

    waits: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    busy: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """Where the page is and what it calls its events.

    Attributes:
        url: its address, with a slash at the end.
        network: the network that it offers first.
        photo: number of the event that answers a photo.
        camera: number of the event that answers a stream of frames.
    """

    url: str
    network: str
    photo: int
    camera: int

    @classmethod
    def at(cls, url: str) -> "Page":
        """Ask the page at an address."""
        config = httpx.get(f"{url}config", timeout=PATIENCE).json()
        named = {part["props"].get("elem_id"): part for part in config["components"]}

        def event(name: str, kind: str) -> int:
            target = [named[name]["id"], kind]
            found = (function for function in config["dependencies"] if target in map(list, function["targets"]))
            return next(function["id"] for function in found if function["backend_fn"])

        network = named["network"]["props"]["value"]
        return cls(url, network, event("photo-input", "change"), event("live-camera", "stream"))

    def client(self, number: int) -> httpx.AsyncClient:
        """The browser of a visitor; its address depends on the number."""
        transport = httpx.AsyncHTTPTransport(local_address=f"127.0.1.{number % 254 + 1}")
        return httpx.AsyncClient(base_url=f"{self.url}gradio_api/", transport=transport, timeout=PATIENCE)


def photo(side: int) -> bytes:
    """A JPEG of three people whom nobody has seen, 4:3 and `side` pixels wide."""
    picture = Image.new("RGB", (side, side * 3 // 4), (96, 110, 100))
    for index, name in enumerate(FACES):
        face = Image.open(APP.parent / f"examples/{name}.png").convert("RGB")
        face = face.resize((side // 4, side // 4), Image.Resampling.BICUBIC)
        picture.paste(face, (side // 16 + index * side * 5 // 16, side // 4))
    stream = io.BytesIO()
    picture.save(stream, "JPEG")
    return stream.getvalue()


def data_url(jpeg: bytes) -> str:
    """How a browser sends a frame."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


async def messages(client: httpx.AsyncClient, session: str) -> AsyncIterator[dict[str, Any]]:
    """What the page has to say to a visitor, as long as something of the visitor's is in the queue."""
    async with client.stream("GET", "queue/data", params={"session_hash": session}) as stream:
        async for line in stream.aiter_lines():
            if line:
                yield json.loads(line.removeprefix("data: "))


def body(event: int, session: str, data: list[Any]) -> dict[str, Any]:
    """How a browser asks for an event."""
    return {"fn_index": event, "data": data, "session_hash": session, "event_data": None, "trigger_id": None}


async def give_photos(page: Page, number: int, picture: bytes, end: float) -> Visitor:
    """Give one photo after the other, without a pause, until `end` (of the monotonic clock)."""
    visitor, session = Visitor(), uuid4().hex
    async with page.client(number) as client:
        while time.monotonic() < end:
            start = time.monotonic()
            try:
                # No photo is given twice: the page would not look at it again.
                file = ("photo.jpg", picture + uuid4().bytes)
                path = (await client.post("upload", files={"files": file})).raise_for_status().json()[0]
                image = {"path": path, "meta": {"_type": "gradio.FileData"}}
                asked = body(page.photo, session, [page.network, image, False, None, None])
                answer = await client.post("queue/join", json=asked)
                if answer.status_code == 503:
                    visitor.busy += 1
                    await asyncio.sleep(1)
                    continue
                answer.raise_for_status()
                async for message in messages(client, session):
                    if message["msg"] == "process_completed":
                        if message["success"] and 'class="face"' in str(message["output"]):
                            visitor.waits.append(time.monotonic() - start)
                        else:
                            visitor.errors.append(str(message)[:300])
            except httpx.HTTPError as error:
                visitor.errors.append(repr(error))
    return visitor


async def show_camera(page: Page, number: int, frame: str, end: float) -> Visitor:
    """Stream ten frames a second until `end` (of the monotonic clock), and queue again whenever a turn is over."""
    visitor, session = Visitor(), uuid4().hex
    async with page.client(number) as client:
        asked = body(page.camera, session, [{"url": frame}, page.network, None])

        async def send(event: str) -> None:
            while True:
                await asyncio.sleep(FRAME_SECONDS)
                await client.post(f"stream/{event}", json=asked)

        while time.monotonic() < end:
            start, last, sender = time.monotonic(), None, None
            try:
                answer = await client.post("queue/join", json=asked)
                if answer.status_code == 503:
                    visitor.busy += 1
                    await asyncio.sleep(1)
                    continue
                event = answer.raise_for_status().json()["event_id"]
                async for message in messages(client, session):
                    now = time.monotonic()
                    if not message.get("success", True):
                        visitor.errors.append(str(message)[:300])
                    elif message["msg"] == "process_streaming":
                        (visitor.gaps if last else visitor.waits).append(now - (last or start))
                        last, sender = now, sender or asyncio.create_task(send(event))
                    if last and now > end:
                        await client.post(f"stream/{event}/close", json={})
                        break
            except httpx.HTTPError as error:
                visitor.errors.append(repr(error))
            finally:
                if sender:
                    sender.cancel()
    return visitor


async def upload_slowly(page: Page, number: int, picture: bytes, end: float) -> None:
    """Send a byte a second."""

    async def drops() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="slow.jpg"\r\n\r\n'
        for index in range(len(picture)):
            if time.monotonic() > end:
                return
            yield picture[index : index + 1]
            await asyncio.sleep(1)

    async with page.client(number) as client:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        await client.post("upload", content=drops(), headers=headers)


async def leave_early(page: Page, number: int, picture: bytes, end: float) -> None:
    """Give a photo and go before the answer, once a second."""
    while time.monotonic() < end:
        async with page.client(number) as client:
            path = (await client.post("upload", files={"files": ("photo.jpg", picture)})).json()[0]
            image = {"path": path, "meta": {"_type": "gradio.FileData"}}
            session = uuid4().hex
            await client.post("queue/join", json=body(page.photo, session, [page.network, image, False, None, None]))
            async with client.stream("GET", "queue/data", params={"session_hash": session}):
                pass
        await asyncio.sleep(1)


async def fall_silent(page: Page, number: int, frame: str, end: float) -> None:
    """Start a camera that sends one frame and no more, and listen on."""
    async with page.client(number) as client:
        while time.monotonic() < end:
            session = uuid4().hex
            answer = await client.post(
                "queue/join", json=body(page.camera, session, [{"url": frame}, page.network, None])
            )
            if answer.status_code == 503:
                await asyncio.sleep(1)
                continue
            async for _ in messages(client, session):
                if time.monotonic() > end:
                    break


async def visit(page: Page, visitors: int, seconds: float, bad: bool = True) -> tuple[list[Visitor], list[Visitor]]:
    """Let many visitors come at the same time.

    Args:
        page: where to.
        visitors: how many behave well.
        seconds: how long; an answer that is due then is waited for.
        bad: whether three more don't: an upload of a byte a second, photos whose visitor leaves before the answer, and
            a camera that falls silent in its turn.

    Returns:
        What those with photos and those with cameras saw.
    """
    picture, frame = photo(1280), data_url(photo(640))
    cameras = round(CAMERA_SHARE * visitors)
    end = time.monotonic() + seconds
    bothering = [
        asyncio.create_task(bother(page, visitors + index, material, end))
        for index, (bother, material) in enumerate(
            ((upload_slowly, picture), (leave_early, picture), (fall_silent, frame)) if bad else ()
        )
    ]
    with_photos = (give_photos(page, number, picture, end) for number in range(cameras, visitors))
    with_cameras = (show_camera(page, number, frame, end) for number in range(cameras))
    seen = await asyncio.gather(*with_cameras, *with_photos)
    for task in bothering:
        task.cancel()
    await asyncio.gather(*bothering, return_exceptions=True)
    return seen[cameras:], seen[:cameras]


@contextmanager
def served() -> Iterator[tuple[str, int]]:
    """Address of a page that is served for this measurement alone, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "GRADIO_TEMP_DIR": folder}
        command = [sys.executable, str(APP), "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}/"
        try:
            while process.poll() is None:
                try:
                    httpx.get(url, timeout=PATIENCE)
                    break
                except httpx.ConnectError:
                    time.sleep(0.2)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait()


def measure(visitors: int, seconds: float, settle_seconds: float) -> dict[str, Any]:
    """Serve the page, warm it up with a sixth of the load's duration, load it, and wait until its memory is back.

    Args:
        visitors: how many behave well; every fifth has a camera.
        seconds: duration of the load.
        settle_seconds: how long memory may take.

    Returns:
        JSON-ready figures: the machine, what visitors with photos and with cameras saw, and the server's memory.
    """
    with served() as (url, process):
        page = Page.at(url)
        asyncio.run(visit(page, visitors, seconds / 6))
        before = memory("VmRSS", process)
        photos, cameras = asyncio.run(visit(page, visitors, seconds))
        ended, after = time.monotonic(), memory("VmRSS", process)
        least = after
        while least > SETTLED * before and time.monotonic() - ended < settle_seconds:
            time.sleep(1)
            least = min(least, memory("VmRSS", process))
        return {
            "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
            "visitors": visitors,
            "seconds": seconds,
            "photos": summary(photos),
            "cameras": summary(cameras),
            "memory": {
                **{"before": before, "after": after, "settled": least, "seconds": time.monotonic() - ended},
                "peak": memory("VmHWM", process),
            },
        }


def summary(visitors: list[Visitor]) -> dict[str, Any]:
    """Figures of what many visitors saw, JSON-ready."""
    waits, gaps = ([seconds for visitor in visitors for seconds in getattr(visitor, key)] for key in ("waits", "gaps"))
    answers = sorted(len(visitor.waits) for visitor in visitors)
    return {
        "visitors": len(visitors),
        "answers": {"waits": len(waits), "gaps": len(gaps)},
        "least_and_most": [answers[0], answers[-1]],
        "waits": percentiles(waits),
        "gaps": percentiles(gaps),
        "busy": sum(visitor.busy for visitor in visitors),
        "errors": [error for visitor in visitors for error in visitor.errors],
    }


def percentiles(seconds: list[float]) -> list[float]:
    """p50, p95 and p99; nothing of nothing."""
    return [round(float(value), 3) for value in np.percentile(seconds, (50, 95, 99))] if seconds else []


def table(results: dict[str, Any]) -> str:
    """The results of `measure` as a Markdown table with a line on how they came about."""
    photos, cameras, used = results["photos"], results["cameras"], results["memory"]

    def row(title: str, who: dict[str, Any], key: str) -> str:
        times = " | ".join(f"{value:.2f} s" for value in who[key]) or "- | - | -"
        return f"| {title} | {who['visitors']} | {who['answers'][key]} | {times} |"

    rows = [
        row("photo: until its answer", photos, "waits"),
        row("camera: until its turn", cameras, "waits"),
        row("camera: between two answers in its turn", cameras, "gaps"),
    ]
    errors = len(photos["errors"]) + len(cameras["errors"])
    low, high = photos["least_and_most"]
    megabytes = {key: f"{used[key] / 1e6:,.0f} MB" for key in ("before", "after", "settled", "peak")}
    later = f", {megabytes['settled']} {used['seconds']:.0f} seconds later" if used["seconds"] >= 1 else ""
    return "\n".join(
        [
            "| | visitors | answers | p50 | p95 | p99 |",
            "|---|---:|---:|---:|---:|---:|",
            *rows,
            "",
            f"{results['seconds']:.0f} seconds, {results['visitors']} visitors who ask again as soon as they are "
            f'answered, and three who behave badly; {errors} errors, {photos["busy"] + cameras["busy"]} times "busy". '
            f"Every visitor with photos got {low} to {high} answers. Memory of the server: {megabytes['before']} "
            f"before, {megabytes['after']} at the end{later}, at "
            f"most {megabytes['peak']}. Visitors and server shared {results['machine']}.",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, and write the figures if asked to.

    Returns:
        The exit code: 1 if a visitor met an error, or if the server's memory did not come back.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=50, metavar="NUMBER", help="at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, metavar="NUMBER", help="of load (default: %(default)s)")
    parser.add_argument(
        "--settle", type=float, default=300, metavar="SECONDS", help="for memory to come back (default: %(default)s)"
    )
    offer_to_write(parser, RESULTS)
    options = parser.parse_args(arguments)
    if options.visitors < 5:
        parser.error(f"--visitors is {options.visitors}; give at least 5, so that one has a camera.")
    results = measure(options.visitors, options.seconds, options.settle)
    report(table(results), results, RESULTS if options.write else None)
    errors = results["photos"]["errors"] + results["cameras"]["errors"]
    print(*errors[:10], sep="\n", file=sys.stderr)
    used = results["memory"]
    return 1 if errors or used["settled"] > SETTLED * used["before"] else 0


if __name__ == "__main__":
    sys.exit(main())
