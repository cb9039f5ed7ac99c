"""A clip as upright pictures with time stamps: a few a second, however long, large or crafted the file is."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image

RATE: Final = 5
"""Pictures that are taken each second: an expression lasts half a second to four (Matsumoto & Hwang 2011,
doi.org/10.1007/s11031-011-9212-2), so that even the shortest shows in two or three of them."""
MAX_SECONDS: Final = 60
"""Of a longer clip, only the beginning is read."""
MAX_PIXELS: Final = 4096 * 2304
"""Largest picture of a clip: 4K."""
MAX_FRAME_RATE: Final = 240
"""Frames that a second may hold on average, as in slow motion: all of them have to be decoded."""
FORMATS: Final = {b"ftyp": "mp4", b"wide": "mp4", b"moov": "mp4", b"mdat": "mp4", b"\x1a\x45\xdf\xa3": "matroska"}
"""Containers that are opened, by the bytes at their beginning, in MP4 and QuickTime after a length of four bytes.
FFmpeg knows more, but some of them are lists of other files and addresses."""
CODECS: Final = ("h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mjpeg")
"""What cameras, browsers and editors write."""


class Clip:
    """The pictures of a clip. Iterating reads the file and holds one picture at a time.

        for time, picture in Clip("clip.mp4"):
            ...

    `time` is in seconds from the first frame and `picture` an upright RGB image. `RATE` pictures are taken in a second:
    the first frame that begins in each fifth of it, so that the frame rate may vary. The length of a clip is the
    number of its pictures.

    Args:
        path: an MP4, QuickTime, WebM or Matroska file, whatever its name. No other file or address is ever opened, as
            playlists and the like could ask for.

    Attributes:
        seconds: time of the last frame that counts.
        cut: whether more than `MAX_SECONDS` are in the file, the rest of which is left out.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it may not be read.
        ValueError: if it is not a clip, is damaged or empty, or has too many pixels or frames; also while iterating.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        times: list[Fraction] = []
        self.cut = False
        with self._opened() as (container, stream):
            for packet in container.demux(stream):
                if packet.pts is None:
                    continue
                times.append(packet.pts * packet.time_base)
                self.cut = times[-1] - times[0] >= MAX_SECONDS
                if self.cut:
                    break
                if len(times) > MAX_SECONDS * MAX_FRAME_RATE:
                    raise ValueError(
                        f"'{path}' has more than {MAX_SECONDS * MAX_FRAME_RATE} frames in {MAX_SECONDS} seconds; give "
                        f"a clip with up to {MAX_FRAME_RATE} a second."
                    )
        if not times:
            raise ValueError(f"'{path}' holds no complete picture; give an intact clip.")
        seconds = [time - min(times) for time in times if time - min(times) < MAX_SECONDS]
        self.seconds = float(max(seconds))
        self._length = len({math.floor(time * RATE) for time in seconds})

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[float, Image.Image]]:
        start, due = None, Fraction(0)
        with self._opened() as (container, stream):
            for frame in container.decode(stream):
                if frame.pts is None:
                    continue
                time = frame.pts * frame.time_base
                start = time if start is None else start
                if time - start >= MAX_SECONDS:
                    break
                if time - start >= due:
                    due = Fraction(math.floor((time - start) * RATE) + 1, RATE)
                    yield float(time - start), frame.to_image().rotate(frame.rotation, expand=True)

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        name, accepted = f"'{self._path}'", "give an intact MP4, MOV, WebM or MKV."
        if not os.path.isfile(self._path):
            raise FileNotFoundError(f"{name} does not exist or is no file; give the path of a clip.")
        with open(self._path, "rb") as file:
            head = file.read(8)
            file.seek(0)
            format = FORMATS.get(head[4:], FORMATS.get(head[:4]))
            if format is None:
                raise ValueError(f"{name} is not a clip; {accepted}")
            limits = {"max_pixels": str(MAX_PIXELS)}
            try:
                with av.open(file, format=format, io_open=_refuse, options=limits) as container:
                    stream = container.streams.best("video")
                    if stream is None:
                        raise ValueError(f"{name} holds no complete picture; give an intact clip.")
                    codec = stream.codec_context and stream.codec_context.codec.canonical_name
                    if codec not in CODECS:
                        raise ValueError(f"{name} is coded as {codec}; give one of {', '.join(CODECS)}.")
                    if stream.width * stream.height > MAX_PIXELS:
                        raise ValueError(
                            f"{name} has {stream.width} x {stream.height} pixels; give a clip with up to "
                            f"{MAX_PIXELS / 1e6:.1f} megapixels, which is 4K."
                        )
                    stream.codec_context.options = limits
                    stream.thread_type = "AUTO"
                    yield container, stream
            except av.FFmpegError:
                raise ValueError(f"{name} is damaged or cut short; {accepted}") from None


def _refuse(*_: Any) -> None:
    """What FFmpeg gets instead of another file that a clip asks for."""
    raise PermissionError
