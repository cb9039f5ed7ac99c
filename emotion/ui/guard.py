"""What stands before the page: limits on what one visitor may ask, closed doors, and the forgetting of pictures."""

import asyncio
import os
import re
import shutil
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn

import gradio as gr
import safehttpx
from gradio.utils import get_upload_folder
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emotion.networks import TRIM

BUSY: Final = "This page is busy; please try again in a minute."
WORK: Final = re.compile(r"(?s)/*gradio_api/(upload|queue/join|(call|run|api|mcp)/.*)")
"""Requests that let the server work."""
CLOSED: Final = re.compile(
    r"(?s)/*(gradio_api/(deep_link|process_recording|component_server|vibe-.*|proxy=.*)|monitoring.*)"
)
"""Doors of gradio that the page does not use: they write what they are given to files, or ask other hosts."""
UPLOADS: Final = 8
"""A request may upload this many times the size of one file: several photos come in one."""
ENTRY: Final = re.compile(r"[0-9a-f]{64}|tmp[a-z0-9_]{8}")
"""What gradio calls a folder that holds an upload, and a file that is still coming in."""


def setting(name: str, default: int) -> int:
    """A whole number from the environment, so that a Space can set it, too.

    Args:
        name: of the variable.
        default: what holds without it.

    Raises:
        ValueError: if it is not a whole number of at least 1.
    """
    text = os.environ.get(name) or str(default)
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text):
        raise ValueError(f"{name} is {text!r}; give a whole number of at least 1.")
    return int(text)


QUEUE: Final = setting("EMOTION_QUEUE", 100)
"""Requests that may wait for an answer."""
PER_MINUTE: Final = setting("EMOTION_PER_MINUTE", 600)
"""Requests for an answer, and uploads, from one address in a minute."""
FILE_MEGABYTES: Final = setting("EMOTION_FILE_MB", 64)
"""Largest upload."""


async def _refuse(*_: Any, **__: Any) -> NoReturn:
    sentence = "An address was given, and nothing is fetched here; give a picture, or upload it."
    raise gr.Error(sentence, print_exception=False)


def _print_stack(*_: Any, **__: Any) -> None:
    error = sys.exc_info()[1]
    while error:
        print(f"{type(error).__name__} in:\n{''.join(traceback.format_tb(error.__traceback__))}", file=sys.stderr)
        error = error.__cause__ or error.__context__


# What gradio asks another host with when a client gives an address for a file.
safehttpx.get = safehttpx.async_validate_url = _refuse
# What gradio logs an error with: its message may hold what the visitor has given, picture and all.
traceback.print_exc = _print_stack


class Guard:
    """ASGI middleware between the visitors and gradio.

    Args:
        app: what it guards.
        per_minute: requests that let the server work, from one address.
        file_bytes: largest body of a request; an upload may have `UPLOADS` times as many.
        sweep_seconds: how often what is old is forgotten.
        keep_seconds: how old that is.
    """

    def __init__(
        self, app: ASGIApp, per_minute: int, file_bytes: int, sweep_seconds: float, keep_seconds: float
    ) -> None:
        self.app = app
        self.per_minute = per_minute
        self.file_bytes = file_bytes
        self.sweep_seconds = sweep_seconds
        self.keep_seconds = keep_seconds
        self.times: dict[str, deque[float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer in gradio's place, or let it answer."""
        if scope["type"] == "lifespan":
            forgetting = asyncio.create_task(self._forget(scope["app"]))
            try:
                await self.app(scope, receive, send)
            finally:
                forgetting.cancel()
            return
        path = scope.get("path", "").removeprefix(scope.get("root_path", "")).rstrip("/")
        if CLOSED.fullmatch(path):
            await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, send)
        elif scope.get("method") == "POST" and WORK.fullmatch(path) and not self._may_work(scope.get("client")):
            # Not 429: gradio's page and clients know 503 alone to mean "busy".
            await JSONResponse({"detail": BUSY}, 503, {"Retry-After": "60"})(scope, receive, send)
        else:
            most = self.file_bytes * (UPLOADS if path.endswith("/upload") else 1)
            with suppress(ClientDisconnect):  # nobody is left to be answered
                await self.app(scope, _bounded(receive, most), send)

    def _may_work(self, client: tuple[str, int] | None) -> bool:
        now = time.monotonic()
        times = self.times.setdefault(client[0] if client else "", deque())
        while times and now - times[0] > 60:
            times.popleft()
        if len(times) >= self.per_minute:
            return False
        times.append(now)
        return True

    async def _forget(self, app: gr.routes.App) -> None:
        while True:
            with _errors_printed():
                forget_sessions(app, self.keep_seconds)
            with _errors_printed():
                await asyncio.to_thread(sweep, Path(get_upload_folder()), self.keep_seconds)
            with _errors_printed():
                if TRIM:
                    await asyncio.to_thread(TRIM, 0)
            now = time.monotonic()
            self.times = {address: times for address, times in self.times.items() if now - times[-1] < 60}
            await asyncio.sleep(self.sweep_seconds)


@contextmanager
def _errors_printed() -> Iterator[None]:
    """Go on after an error, such as too many open files: what was not forgotten now is the next time."""
    try:
        yield
    except Exception:
        traceback.print_exc()


def _bounded(receive: Receive, most: int) -> Receive:
    """`receive` that ends a request whose body is longer than `most` bytes."""
    total = 0

    async def bounded() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > most:
            raise HTTPException(413, f"This request is larger than {most / 1e6:.0f} MB; send less.")
        return message

    return bounded


def sweep(folder: Path, seconds: float) -> None:
    """Delete uploads that have not changed for so many seconds, whichever server they were for.

    Gradio deletes the files that it remembers: not those of a server that was killed, and not what had come in of an
    upload that was broken off.

    Args:
        folder: where gradio puts uploads; nothing else in it is touched.
        seconds: how old a file may be.
    """
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if not ENTRY.fullmatch(entry.name) or entry.is_symlink():
            continue
        try:
            times = [path.lstat().st_ctime for path in (entry, *entry.glob("*"))]
            if time.time() - max(times) > seconds:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        except OSError:  # another server, or gradio, was faster; or it is another user's
            continue


def forget_sessions(app: gr.routes.App, seconds: float) -> None:
    """Drop what gradio holds in memory for visitors who have not done anything for so many seconds.

    Gradio keeps the last values of 10,000 visitors, pictures in results among them, until others push them out.

    Args:
        app: gradio's server.
        seconds: how long a visitor may be idle.
    """
    held, queue, now = app.state_holder, app.get_blocks()._queue, datetime.now()
    waiting = {event.session_hash for event in queue.event_ids_to_events.values()}
    # Whom newer visitors have pushed out there still has answers in the queue.
    for session in {*queue.pending_messages_per_session, *queue.pending_event_ids_session}:
        held.time_last_used.setdefault(session, now)
    for session, used in list(held.time_last_used.items()):
        if session not in waiting and (now - used).total_seconds() > seconds:
            for kept in (
                held.time_last_used,
                held.session_data,
                queue.pending_messages_per_session,
                queue.pending_event_ids_session,
            ):
                kept.pop(session, None)
