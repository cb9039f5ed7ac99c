"""Files that a public page is fed: pictures of every kind, damaged ones, hostile ones, and no pictures at all.

Everything is made here from one portrait and a seed, so that the same files come out every time.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import skimage.data
from PIL import Image

SIDE = 128
"""Of the portrait, in pixels: small, so that thousands of files are read in a minute."""
CHANGES = 82
"""Truncations, and flips, of every undamaged file."""


class Case(NamedTuple):
    """A file.

    Attributes:
        kind: what is wrong with it.
        name: what it is called.
        make: its bytes.
        tolerance: how far the probabilities may be from those of the portrait, None where another answer is right.
        large: whether reading it takes seconds.
    """

    kind: str
    name: str
    make: Callable[[], bytes]
    tolerance: float | None = None
    large: bool = False


def portrait() -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()[:256, 100:356]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    # Copies, because Pillow keeps a JPEG's settings in a picture and trips over them in the next format.
    if "append_images" in options:
        options["append_images"] = [frame.copy() for frame in options["append_images"]]
    image, stream = image.copy(), io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010F] = "Maker"
    return block.tobytes()


def corpus(seed: int = 0) -> list[Case]:
    """At least 2,000 files, in a stable order."""
    cases = [*undamaged(), *foreign(), *bombs(), *large()]
    for index, (name, data) in enumerate(seeds()):
        rng = np.random.default_rng((seed, index))
        suffix = name.rpartition(".")[2]
        for number in range(CHANGES):
            # Half of the damage is done where the format keeps its tables.
            head = 400 if number % 2 else len(data)
            keep = int(rng.integers(1, min(head, len(data))))
            cases.append(Case("cut short", f"cut {number} {name}.{suffix}", lambda data=data, keep=keep: data[:keep]))
            places = rng.integers(0, min(head, len(data)), 2 ** int(rng.integers(0, 5)))
            bits = 1 << rng.integers(0, 8, len(places))
            cases.append(
                Case("bits flipped", f"flip {number} {name}.{suffix}", lambda a=(data, places, bits): flip(*a))
            )
    assert len({(case.kind, case.name) for case in cases}) == len(cases) >= 2000
    return cases


def flip(data: bytes, places: np.ndarray, bits: np.ndarray) -> bytes:
    damaged = np.frombuffer(data, np.uint8).copy()
    np.bitwise_xor.at(damaged, places, bits.astype(np.uint8))
    return damaged.tobytes()


def seeds() -> Iterator[tuple[str, bytes]]:
    """What is cut short and flipped: one file of each way to store a picture."""
    photo = portrait()
    small = photo.resize((96, 96))
    yield "photo.jpg", encoded(photo, "JPEG", exif=exif(6))
    yield "progressive.jpg", encoded(photo, "JPEG", progressive=True, subsampling=0)
    yield "photo.png", encoded(small, "PNG", exif=exif(3))
    yield "palette.png", encoded(small.quantize(32), "PNG", transparency=3)
    yield "photo.webp", encoded(photo, "WEBP", exif=exif(8))
    yield "lossless.webp", encoded(small, "WEBP", lossless=True)
    yield "photo.gif", encoded(photo, "GIF", save_all=True, append_images=[small])
    yield "photo.tif", encoded(small, "TIFF")
    yield "packed.tif", encoded(small, "TIFF", compression="tiff_lzw")
    yield "jpeg.tif", encoded(small, "TIFF", compression="jpeg")
    yield "photo.bmp", encoded(small, "BMP")
    yield "photo.avif", encoded(photo, "AVIF") if Image.registered_extensions().get(".avif") else b"\0\0\0 ftypavif"


def undamaged() -> Iterator[Case]:
    """Unusual files that show the portrait: exactly, or as well as their coding can."""
    photo = portrait()
    wide = np.asarray(photo).astype(np.uint16) * 257
    frames = {"save_all": True, "append_images": [Image.new("RGB", photo.size, "blue")] * 3}
    clear = photo.copy()
    clear.putalpha(255)
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    wrong = b"Exif\0\0II*\0\xff\xff\xff\xff"
    exact = {
        "opaque.png": lambda: encoded(clear, "PNG"),
        "turned.png": lambda: encoded(turned, "PNG", exif=exif(6)),
        "turned.tif": lambda: encoded(turned, "TIFF", exif=exif(6)),
        "photo.tif": lambda: encoded(photo, "TIFF"),
        "animated.png": lambda: encoded(photo, "PNG", **frames),
        "animated.webp": lambda: encoded(photo, "WEBP", lossless=True, **frames),
        "pages.tif": lambda: encoded(photo, "TIFF", **frames),
        "deflate.tif": lambda: encoded(photo, "TIFF", compression="tiff_adobe_deflate"),
        "lossless.webp": lambda: encoded(clear, "WEBP", lossless=True),
        "photo.bmp": lambda: encoded(photo, "BMP"),
        "16 bits.png": lambda: png(wide.astype(">u2").tobytes(), *photo.size, depth=16),
        "wrong exif.png": lambda: encoded(photo, "PNG", exif=wrong),
        "long text.png": lambda: with_chunks(chunk(b"tEXt", b"Comment\0" + b"x" * 2**20)),
        "packed text.png": lambda: with_chunks(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 900_000))),
        "wrong profile.png": lambda: with_chunks(chunk(b"iCCP", b"a\0\0" + zlib.compress(b"no profile" * 9))),
        "really a png.jpg": lambda: encoded(photo, "PNG"),
        "no ending": lambda: encoded(photo, "PNG"),
        "more behind.png": lambda: encoded(photo, "PNG") + b"<script>alert(1)</script>" * 1000,
        "<img src=x onerror=alert(1)>.png": lambda: encoded(photo, "PNG"),
    }
    for name, make in exact.items():
        yield Case("unusual", name, make, tolerance=1e-5)
    close = {
        "photo.jpg": lambda: encoded(photo, "JPEG", quality=95),
        "progressive.jpg": lambda: encoded(photo, "JPEG", quality=95, progressive=True),
        "cmyk.jpg": lambda: encoded(photo.convert("CMYK"), "JPEG", quality=95),
        "long comment.jpg": lambda: encoded(photo, "JPEG", quality=95, comment=b"x" * 65_000),
        "wrong exif.jpg": lambda: encoded(photo, "JPEG", quality=95, exif=wrong),
        "two pictures.mpo": lambda: encoded(photo, "MPO", quality=95, **frames),
        "really a jpeg.png": lambda: encoded(photo, "JPEG", quality=95),
        "photo.webp": lambda: encoded(photo, "WEBP", quality=95),
        "cmyk.tif": lambda: encoded(photo.convert("CMYK"), "TIFF"),
        "palette with alpha.png": lambda: encoded(photo.quantize(255), "PNG", transparency=bytes([255] * 256)),
        "animated.gif": lambda: encoded(photo, "GIF", **frames),
        "grey.png": lambda: encoded(photo.convert("L"), "PNG"),
        "grey of 16 bits.png": lambda: encoded(Image.fromarray(np.asarray(photo.convert("L")) * np.uint16(257)), "PNG"),
        "grey with alpha.png": lambda: encoded(clear.convert("LA"), "PNG"),
        "grey fractions.tif": lambda: encoded(
            Image.fromarray(np.asarray(photo.convert("L")) / np.float32(255)), "TIFF"
        ),
    }
    for name, make in close.items():
        yield Case("unusual", name, make, tolerance=0.1)
    yield Case("unusual", "one pixel.png", lambda: encoded(Image.new("RGB", (1, 1)), "PNG"))
    yield Case("unusual", "column.png", lambda: encoded(Image.new("L", (1, 30_000)), "PNG"))
    yield Case("unusual", "row.bmp", lambda: encoded(Image.new("RGB", (30_000, 1)), "BMP"))
    yield Case("unusual", "bits.png", lambda: encoded(photo.convert("1"), "PNG"))


def foreign() -> Iterator[Case]:
    """No pictures, or none of a format that is opened."""
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/><script>alert(1)</script></svg>"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("photo.png", bytes(2**24))
    photo = portrait()
    files = {
        "empty.png": b"",
        "one byte.jpg": b"\xff",
        "drawing.svg": svg,
        "drawing.png": svg,
        "page.html": b"<html><script>alert(1)</script></html>",
        "page.jpg": b"<!DOCTYPE html><html></html>",
        "archive.zip": archive.getvalue(),
        "archive.jpg": archive.getvalue(),
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        "document.pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "text.txt": b"This is no picture.",
        "zeros.png": bytes(10_000),
        "noise.webp": np.random.default_rng(0).bytes(10_000),
        "sound.webp": b"RIFF" + struct.pack("<L", 36) + b"WAVEfmt " + bytes(28),
        "photo.ppm": encoded(photo, "PPM"),
        "photo.ico": encoded(photo, "ICO"),
        "photo.jp2": encoded(photo, "JPEG2000"),
        "photo.tga": encoded(photo, "TGA"),
        "photo.pcx": encoded(photo, "PCX"),
        "clip.mp4": b"\0\0\0\x18ftypmp42" + bytes(100),
        "program.png": b"\x7fELF" + bytes(100),
        "weights.png": b"\x80\x04cposix\nsystem\n(S'touch owned'\ntR.",
    }
    for name, data in files.items():
        yield Case("no picture", name, lambda data=data: data)


# --- files that cost far more than they weigh


def bombs() -> Iterator[Case]:
    """Small files that ask for minutes or gigabytes, most of which they get from Pillow alone."""
    jpeg = encoded(portrait(), "JPEG")
    tables = jpeg.index(b"\xff\xdb")
    segments = {
        "greedy exif.jpg": [segment(0xE1, b"Exif\0\0" + greedy_table(65_000))],
        "greedy mpf.jpg": [segment(0xE2, b"MPF\0" + greedy_table(65_000))],
        "exif in parts.jpg": [segment(0xE1, b"Exif\0\0" + bytes(65_500))] * 600,
        "comments.jpg": [segment(0xFE, b"")] * 2_000_000,
        "profile.jpg": [segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000))] * 200,
    }
    files = {
        "greedy exif.png": lambda: with_chunks(chunk(b"eXIf", greedy_table(2**20))),
        "greedy exif.webp": lambda: encoded(portrait(), "WEBP", exif=b"Exif\0\0" + greedy_table(2**20)),
        "greedy table.tif": lambda: tiff([(40_000 + tag, 7, 2**23, 0) for tag in range(300)], bytes(2**23)),
        "greedy directory.tif": lambda: greedy_directory(2**23),
        "many strips.tif": lambda: tiff([(273, 4, 2**21, 300)], struct.pack("<L", 300) * 2**21),
        "strips at the limit.tif": lambda: tiff([(273, 4, 240_000, 300)], struct.pack("<L", 300) * 240_000),
        "comment.gif": lambda: with_comment(255, 2**16),
        "comment in bytes.gif": lambda: with_comment(1, 2**20),
        "comment at the limit.gif": lambda: with_comment(255, 4900),
        "chunks.png": lambda: with_chunks(chunk(b"abCd", b"") * 10**6),
        "chunks of pixels.png": lambda: with_chunks(chunk(b"IDAT", b"") * 10**6, before=b"IDAT"),
        "chunks behind.png": lambda: with_chunks(chunk(b"abCd", b"") * 10**6, before=b"IEND"),
        "packed text.png": lambda: with_chunks(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27)))),
        "packed texts.png": lambda: with_chunks(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20))) * 200),
        "packed profile.png": lambda: with_chunks(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**27)))),
        "passes.jpg": lambda: with_passes(7200, 500),
        "passes at the limit.jpg": lambda: with_passes(4000, 150),
        "runs.bmp": lambda: with_runs(8000, 6000, b"\1\0" * 2**22),
        "ends of lines.bmp": lambda: with_runs(8000, 6000, b"\0\0" * 2**22),
        "60 megapixels.png": lambda: png(b"", 8000, 7500),
        "gigapixels.png": lambda: png(b"", 2**31 - 1, 2**31 - 1),
        "gigapixels.jpg": lambda: jpeg.replace(struct.pack(">HH", SIDE, SIDE), b"\xff\xff" * 2),
        "gigapixels.gif": lambda: (
            b"GIF89a" + b"\xff" * 4 + bytes(3) + b"," + bytes(4) + b"\xff" * 4 + bytes(2) + b"\0;"
        ),
        "gigapixels.webp": lambda: huge_webp(),
        "gigapixels.bmp": lambda: with_runs(2**31 - 1, 2**31 - 1, b""),
        "gigapixels.tif": lambda: tiff([(256, 4, 1, 2**31), (257, 4, 1, 2**31)], b""),
    }
    files |= {name: lambda parts=parts: jpeg[:2] + b"".join(parts) + jpeg[tables:] for name, parts in segments.items()}
    for name, make in files.items():
        yield Case("bomb", name, make)


def large() -> Iterator[Case]:
    """As many pixels as are allowed, or a few more."""

    def blank(mode: str, form: str, width: int = 8000, height: int = 6500, **options: object) -> Callable[[], bytes]:
        return lambda: encoded(Image.new(mode, (width, height)), form, **options)

    yield Case("large", "60 megapixels.jpg", blank("L", "JPEG", height=7500), large=True)
    for name, mode, form, options in (
        ("photo.jpg", "RGB", "JPEG", {}),
        ("turned.jpg", "RGB", "JPEG", {"exif": exif(6)}),
        ("cmyk.jpg", "CMYK", "JPEG", {"progressive": True, "subsampling": 0}),
        ("alpha.png", "RGBA", "PNG", {}),
        ("grey with alpha.png", "LA", "PNG", {}),
        ("bits.png", "1", "PNG", {}),
        ("palette.png", "P", "PNG", {"transparency": 0}),
        ("16 bits.png", "I;16", "PNG", {}),
        ("fractions.tif", "F", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("integers.tif", "I", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("alpha.tif", "RGBA", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("photo.webp", "RGB", "WEBP", {}),
        ("lossless.webp", "RGBA", "WEBP", {"lossless": True, "method": 0}),
        ("photo.gif", "P", "GIF", {}),
        ("photo.bmp", "1", "BMP", {}),
    ):
        yield Case("large", f"52 megapixels, {name}", blank(mode, form, **options), large=True)
    yield Case("large", "wide.png", blank("RGB", "PNG", 30_000, 1_733), large=True)
    yield Case("large", "column of megapixels.png", blank("L", "PNG", 1, 2_000_000), large=True)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))


def png(pixels: bytes, width: int, height: int, depth: int = 8) -> bytes:
    """A PNG of RGB pixels, 8 or 16 bits each."""
    step = 3 * width * depth // 8
    rows = b"".join(b"\0" + pixels[at : at + step] for at in range(0, len(pixels), step))
    head = struct.pack(">LLBBBBB", width, height, depth, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def with_chunks(chunks: bytes, before: bytes = b"IDAT") -> bytes:
    """The portrait with more in front of one of its chunks."""
    data = encoded(portrait(), "PNG")
    at = data.index(before) - 4
    return data[:at] + chunks + data[at:]


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def greedy_table(size: int) -> bytes:
    """EXIF whose every entry names the same bytes, nearly all there are."""
    count = min((size - 14) // 12, 65_535)
    entries = b"".join(struct.pack("<HHLL", 1000 + tag & 0xFFFF, 7, size - 16, 0) for tag in range(count))
    return (b"II*\0" + struct.pack("<LH", 8, count) + entries).ljust(size, b"\0")


def tiff(changes: list[tuple[int, int, int, int]], behind: bytes) -> bytes:
    """A grey TIFF of 64x64 pixels with other entries (tag, type, count, value), and `behind` from byte 300 to 8 kB."""
    usual = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 300)]
    entries = {entry[0]: entry for entry in [*usual, (277, 3, 1, 1), (278, 4, 1, 64), (279, 4, 1, 4096), *changes]}
    table = b"".join(struct.pack("<HHLL", *entry) for _, entry in sorted(entries.items()))
    head = b"II*\0" + struct.pack("<LH", 8, len(entries)) + table + bytes(4)
    return head.ljust(300, b"\0") + behind.ljust(4096, b"\0")


def greedy_directory(size: int) -> bytes:
    """A TIFF whose EXIF directory, which is read with the pixels, names the same megabytes again and again."""
    entries = b"".join(struct.pack("<HHLL", 1000 + tag, 7, size - 16, 0) for tag in range(300))
    return tiff([(34665, 4, 1, 300 + 4096)], bytes(4096) + (struct.pack("<H", 300) + entries).ljust(size, b"\0"))


def with_comment(block: int, blocks: int) -> bytes:
    data = encoded(portrait().quantize(4), "GIF")
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:at] + b"\x21\xfe" + (bytes([block]) + b"x" * block) * blocks + b"\0" + data[at:]


def with_passes(side: int, passes: int) -> bytes:
    """A progressive JPEG that goes over its pixels again and again, a few bytes each time."""
    data = encoded(Image.new("L", (side, side), 100), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * passes + data[-2:]


def with_runs(width: int, height: int, runs: bytes) -> bytes:
    """A BMP of run-length codes, which Pillow reads one by one."""
    head = struct.pack("<LllHHLLllLL", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<LHHL", 1078 + len(runs), 0, 0, 1078) + head + bytes(1024) + runs


def huge_webp() -> bytes:
    canvas = struct.pack("<L", 2) + (2**14 - 2).to_bytes(3, "little") * 2
    still = encoded(portrait(), "WEBP", lossless=True)[12:]
    frame = (
        b"ANMF"
        + struct.pack("<L", 16 + len(still))
        + bytes(6)
        + (SIDE - 1).to_bytes(3, "little") * 2
        + bytes(4)
        + still
    )
    body = b"WEBPVP8X" + struct.pack("<L", 10) + canvas + b"ANIM" + struct.pack("<L", 6) + bytes(6) + frame
    return b"RIFF" + struct.pack("<L", len(body)) + body
