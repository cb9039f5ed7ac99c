"""Reading clips, against frames and times that the tests have written, and against OpenCV's reader."""

import struct
import threading
import weakref
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import write_clip
from PIL import Image

import emotion.video
from emotion.video import MAX_SECONDS, RATE, Clip

MP4 = b"\0\0\0\x18ftypisom"
MATROSKA = b"\x1a\x45\xdf\xa3"


def grey(level: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, (level,) * 3)


def wanted(times: list[float]) -> list[int]:
    """Which frames are taken: of each fifth of a second, the first."""
    fifths = [round(1000 * (time - times[0])) // (1000 // RATE) for time in times]
    return [index for index, fifth in enumerate(fifths) if fifth not in fifths[:index]]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("clip.mp4", "libx264"), ("clip.mov", "mpeg4"), ("clip.webm", "libvpx"), ("clip.mkv", "libx265")],
)
@pytest.mark.parametrize(
    "times",
    [
        [index / 30 for index in range(60)],
        [index / 24 for index in range(48)],
        [0.5 * index for index in range(6)],
        # A phone that slows down in the dark, and a clip that begins late.
        [0.4, 0.433, 0.5, 0.52, 0.81, 0.9, 0.95, 1.0, 1.7, 1.71, 1.72, 1.9, 2.0, 2.19, 2.2, 2.4],
    ],
    ids=["30 a second", "24 a second", "2 a second", "variable"],
)
def test_pictures_are_the_first_of_each_fifth_of_a_second(tmp_path, name, codec, times):
    levels = np.linspace(20, 235, len(times)).round().astype(int)
    path = write_clip(tmp_path / name, [grey(level) for level in levels.tolist()], times, codec)
    clip = Clip(path)
    pictures = list(clip)
    indices = wanted(times)
    assert [time for time, _ in pictures] == pytest.approx([times[index] - times[0] for index in indices], abs=0.002)
    # Half a step between two frames of the fastest clip.
    seen = [np.asarray(picture).mean() for _, picture in pictures]
    assert np.abs(seen - levels[indices]).max() < 1.8
    assert len(clip) == len(pictures)
    assert clip.seconds == pytest.approx(times[-1] - times[0], abs=0.002)
    assert not clip.cut
    assert [time for time, _ in clip] == [time for time, _ in pictures], "it can be read again"


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_pictures_are_turned_as_the_phone_was_held(tmp_path, degrees, portrait):
    path = write_clip(tmp_path / "clip.mp4", [portrait.resize((96, 64))] * 3, [0, 0.1, 0.2])
    cos, sin = round(np.cos(np.radians(degrees))), round(np.sin(np.radians(degrees)))
    content = path.read_bytes()
    # ISO 14496-12, 8.3.2: 40 bytes after the name of the track's header comes its matrix, in 16.16 fixed point.
    place = content.index(b"tkhd") + 44
    turned = struct.pack(">iiii", cos << 16, sin << 16, 0, -sin << 16) + struct.pack(">i", cos << 16)
    path.write_bytes(content[:place] + turned + content[place + 20 :])
    _, picture = next(iter(Clip(path)))
    _, reference = cv2.VideoCapture(str(path)).read()
    assert picture.size == ((96, 64) if degrees % 180 == 0 else (64, 96))
    assert np.abs(np.asarray(picture).astype(int) - reference[:, :, ::-1]).mean() < 3
    if degrees:
        upright = np.asarray(portrait.resize((96, 64)).rotate(-degrees, expand=True)).astype(int)
        assert np.abs(np.asarray(picture) - upright).mean() < 12


def test_of_a_long_clip_the_first_minute_is_read(tmp_path):
    times = [index / 4 for index in range(4 * MAX_SECONDS + 20)]
    path = write_clip(tmp_path / "clip.webm", [grey(index // 2) for index in range(len(times))], times, "libvpx")
    clip = Clip(path)
    read = [time for time, _ in clip]
    assert clip.cut and len(clip) == len(read) == 4 * MAX_SECONDS
    assert clip.seconds == read[-1] == MAX_SECONDS - 0.25


def test_one_picture_is_held_at_a_time(clip):
    seen = []
    for _, picture in Clip(clip):
        seen.append(weakref.ref(picture))
        assert sum(reference() is not None for reference in seen) <= 2
    assert len(seen) == 8


def bad_files(folder: Path, clip: Path) -> Iterator[tuple[str, bytes, str]]:
    content = clip.read_bytes()
    yield "text.mp4", b"This is no clip.", "is not a clip; give an intact MP4, MOV, WebM or MKV"
    yield "empty.mp4", b"", "is not a clip"
    yield "picture.webm", b"\x89PNG\r\n\x1a\n" + bytes(100), "is not a clip"
    yield "head.mp4", MP4 + bytes(100), "is damaged or cut short"
    yield "noise.mkv", MATROSKA + np.random.default_rng(0).bytes(5000), "is damaged or cut short"
    yield "cut.mp4", content[: len(content) // 2], "is damaged or cut short"
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", 8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    yield "sound.mp4", (folder / "sound.mp4").read_bytes(), "holds no complete picture"
    with av.open(str(folder / "none.mkv"), "w") as container:
        stream = container.add_stream("libx264", 10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    yield "none.mkv", (folder / "none.mkv").read_bytes(), "holds no complete picture|damaged"
    other = write_clip(folder / "other.mkv", [grey(0)] * 2, [0, 0.1], "ffv1")
    yield "other.mkv", other.read_bytes(), "is coded as ffv1; give one of h264"
    large = write_clip(folder / "large.mp4", [grey(0, (4112, 2304))], [0])
    yield "large.mp4", large.read_bytes(), "has 4112 x 2304 pixels; give a clip with up to 9.4 megapixels"


def test_a_bad_file_gets_one_sentence(tmp_path, clip):
    for name, content, sentence in bad_files(tmp_path, clip):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=sentence) as error:
            list(Clip(path))
        assert str(error.value).startswith(f"'{path}' ") and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Clip(tmp_path / "missing.mp4")
    with pytest.raises(FileNotFoundError, match="is no file"):
        Clip(tmp_path)


def test_a_damaged_frame_gets_the_sentence_while_reading(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "clip.mov", [*map(Image.fromarray, noise)], [n / 10 for n in range(20)], "mjpeg")
    content = bytearray(path.read_bytes())
    start = len(content) // 2
    content[start : start + 6000] = bytes(6000)
    path.write_bytes(content)
    clip = Clip(path)
    with pytest.raises(ValueError, match="is damaged or cut short"):
        list(clip)


def test_more_frames_than_slow_motion_has_are_refused(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4", [grey(0)] * 70, [n / 30 for n in range(70)])
    monkeypatch.setattr(emotion.video, "MAX_FRAME_RATE", 1)
    with pytest.raises(ValueError, match="more than 60 frames in 60 seconds; give a clip with up to 1 a second"):
        Clip(path)


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and what has been asked of it."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()


def test_no_other_file_or_address_is_opened(tmp_path, clip, asked):
    address, requests = asked
    lists = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{address}/hls.ts\n#EXT-X-ENDLIST\n",
        "file": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {address}/concat.mp4\n",
        "concat file": f"ffconcat version 1.0\nfile {clip.name}\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }
    # FFmpeg by itself does open what a list names.
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(lists["hls"])
    with pytest.raises(av.FFmpegError):
        av.open(str(playlist), options={"protocol_whitelist": "file,http,tcp"})
    assert requests.pop(0) == "/hls.ts"
    requests.clear()
    for name, text in lists.items():
        for head in (b"", MP4, MATROSKA):
            path = clip.parent / f"{name}.mp4"
            path.write_bytes(head + text.encode())
            with pytest.raises(ValueError, match="is not a clip|is damaged"):
                list(Clip(path))
            path.unlink()
    assert not requests
