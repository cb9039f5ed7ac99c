"""What visitors give: pictures and clips of their own, which only this machine reads, or one of the examples."""

import base64
import io
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote
from uuid import uuid4

import av
import gradio as gr
from gradio.components import Component
from gradio.components.file import ListFiles
from gradio.data_classes import FileData, ImageData
from gradio.processing_utils import save_bytes_to_cache
from gradio_client.utils import is_http_url_like
from PIL import Image

from emotion.faces import open_image
from emotion.labels import FERPLUS_LABELS
from emotion.ui.look import data_url

SWEEP_SECONDS: Final = 60
KEEP_SECONDS: Final = 180
"""Once a minute, uploads older than three minutes are deleted."""
FORGOTTEN_MINUTES: Final = (SWEEP_SECONDS + KEEP_SECONDS) // 60
FRAME_CONSTRAINTS: Final = {"width": {"ideal": 640}, "height": {"ideal": 480}, "facingMode": "user"}
"""What is asked of the camera: no more pixels than the search for faces uses."""
EXAMPLES: Final = {
    name: file
    for name in FERPLUS_LABELS
    if (file := Path(__file__).resolve().parents[2] / "examples" / f"{name}.png").is_file()
}
"""Nobody's face with each expression, by its name: the mean of many faces, see `emotion.examples`."""
# Each choice shows its picture: a radio group is what a keyboard and a screen reader know how to use.
EXAMPLE_CSS: Final = "".join(
    f".examples label:has(input[value={name}])::before {{ content: ''; "
    f"background: url({data_url(Image.open(file).convert('L').resize((96, 96)), 'JPEG')}) center / cover }}\n"
    for name, file in EXAMPLES.items()
)
"""Style sheet of `example_input`."""
CLIPS: Final = {
    name: rows
    for name, rows in {
        "one face": [["neutral", "happy", "surprise", "sad", "angry"]],
        "two faces": [["happy", "neutral", "disgust"], ["neutral", "surprise", "sad"]],
    }.items()
    if {face for row in rows for face in row} <= EXAMPLES.keys()
}
"""What each face of an example clip passes through, in names of `EXAMPLES`, by the clip's name."""
CLIP_SIZE: Final = 240
CLIP_FACE: Final = 160
CLIP_RATE: Final = 10
"""Sides of the picture around a face and of the face in it, in pixels; frames per second."""
HOLD_SECONDS: Final = 1.0
FADE_SECONDS: Final = 0.6


def example_input(elem_id: str, render: bool = True) -> gr.Radio:
    """A choice of one of `EXAMPLES` by its name, or None.

    Args:
        elem_id: identifier for style sheets and tests.
        render: whether it is shown here, or later by `render()`.
    """
    # Served from where they lie, not from copies that are deleted like uploads.
    gr.set_static_paths(list(EXAMPLES.values()))
    return gr.Radio(
        list(EXAMPLES),
        label="Or an example",
        info="Each is the mean of many faces, and nobody's.",
        visible=bool(EXAMPLES),
        render=render,
        elem_id=elem_id,
        elem_classes="examples",
    )


def photo_input(elem_id: str, example: gr.Radio) -> gr.Image:
    """An image input that hands over the path of the upload or the example unopened, or None without one.

    `emotion.faces.open_image` opens it, so that a bad file gets the same sentence here as on the command line.

    Args:
        elem_id: identifier for style sheets and tests.
        example: what is chosen there is put into the image input; whatever else the visitor gives clears the choice.
    """
    photo = gr.Image(
        label="Your photo",
        type="filepath",
        sources=["upload", "webcam", "clipboard"],
        height=280,
        buttons=[],
        alt_text="The photo you gave",
        # Mirroring would flip the captured pixels, too.
        webcam_options=gr.WebcamOptions(mirror=False),
        elem_id=elem_id,
        elem_classes="photo-input",
    )

    def uploaded_path(payload: ImageData | None) -> str | None:
        return None if payload is None or payload.path is None else _uploaded(photo, payload.path)

    # Not in a subclass: gradio writes a .pyi file beside the module of every subclass.
    photo.preprocess = uploaded_path
    _take_addresses_of_uploads(photo)
    _fill(photo, example, lambda name: str(EXAMPLES[name]), [photo.input, photo.clear])
    return photo


def clip_input(elem_id: str, example: gr.Radio) -> gr.Video:
    """A video input that hands over the path of the upload, the recording or the example unopened, or None without one.

    `emotion.video.Clip` opens it. FFmpeg, as gradio calls it, never does: it follows whatever a file refers to.

    Args:
        elem_id: identifier for style sheets and tests.
        example: a choice of `CLIPS`, with the same effect as in `photo_input`.
    """
    clip = gr.Video(
        label="Your clip",
        sources=["upload", "webcam"],
        buttons=[],
        # The microphone is not asked for.
        include_audio=False,
        webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": FRAME_CONSTRAINTS}),
        elem_id=elem_id,
        elem_classes="photo-input",
    )

    def uploaded_path(payload: FileData | None) -> str | None:
        return None if payload is None else _uploaded(clip, payload.path)

    def shown(path: str | None) -> FileData | None:
        return None if path is None else FileData(path=path)

    def drawn(name: str) -> str:
        # A name of its own: while one visitor's copy is written, another's is read.
        return save_bytes_to_cache(draw_clip(CLIPS[name]), f"{uuid4().hex}.mp4", clip.GRADIO_CACHE)

    clip.preprocess, clip.postprocess = uploaded_path, shown
    _take_addresses_of_uploads(clip)
    _fill(clip, example, drawn, [clip.input, clip.clear, clip.stop_recording])
    return clip


def draw_clip(rows: Sequence[Sequence[str]]) -> bytes:
    """An MP4 in which one example face passes into the next, without a real person.

    Args:
        rows: for each face, from left to right, the names of `EXAMPLES` that it passes through; equally many for each.
    """
    step = round(CLIP_RATE * (HOLD_SECONDS + FADE_SECONDS))
    margin = (CLIP_SIZE - CLIP_FACE) // 2
    faces = [
        [
            Image.open(EXAMPLES[name]).convert("L").resize((CLIP_FACE, CLIP_FACE), Image.Resampling.BICUBIC)
            for name in row
        ]
        for row in rows
    ]
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("libx264", CLIP_RATE)
        track.width, track.height, track.pix_fmt = CLIP_SIZE * len(rows), CLIP_SIZE, "yuv420p"
        for number in range(step * len(rows[0]) - round(CLIP_RATE * FADE_SECONDS)):
            index, tick = divmod(number, step)
            share = max(0.0, tick / CLIP_RATE - HOLD_SECONDS) / FADE_SECONDS
            picture = Image.new("L", (track.width, track.height), 128)
            for column, row in enumerate(faces):
                now = row[index] if share == 0 else Image.blend(row[index], row[index + 1], share)
                picture.paste(now, (CLIP_SIZE * column + margin, margin))
            frame = av.VideoFrame.from_image(picture.convert("RGB"))
            frame.pts, frame.time_base = number, Fraction(1, CLIP_RATE)
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return stream.getvalue()


def _fill(
    given: Component, example: gr.Radio, find: Callable[[str], str], events: Collection[Callable[..., object]]
) -> None:
    """Put the example that is chosen into an input; `find` gives its path, and `events` clear the choice."""

    show = given.postprocess

    def put(name: str | None) -> str | None:
        return None if name is None else find(name)

    def shown(path: str | None) -> Any:
        # What `gr.skip` gives. Returned by the function, it would make gradio forget the replaced functions of the
        # component; the same file once more would be classified once more.
        return {"__type__": "update"} if path is None else show(path)

    given.postprocess = shown
    example.change(put, example, given, api_visibility="private", show_progress="hidden")
    gr.on(events, None, None, example, js="() => null", api_visibility="private")


def camera_input(elem_id: str) -> gr.Image:
    """A camera that streams frames, as RGB images as its owner sees them: mirrored.

    No frame touches the disk, and none that is a file already is read.
    """
    camera = gr.Image(
        label="Your camera",
        sources=["webcam"],
        streaming=True,
        buttons=[],
        # Mirrors what is shown and what is sent alike, so that a box on the frame fits what its owner sees.
        webcam_options=gr.WebcamOptions(mirror=True, constraints={"video": FRAME_CONSTRAINTS}),
        elem_id=elem_id,
    )

    def frame(payload: ImageData | None) -> Image.Image | None:
        if payload is None or payload.url is None:
            return None
        try:
            return open_data_url(payload.url)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    camera.preprocess = frame
    return camera


def open_data_url(url: str) -> Image.Image:
    """The picture that an address holds; errors are those of `emotion.faces.open_image`."""
    try:
        content = base64.b64decode(url.partition(",")[2])
    except ValueError:  # What is no base64 is no picture, either.
        content = b""
    return open_image(content)


def photos_input(label: str, elem_id: str) -> gr.UploadButton:
    """A button for several pictures that hands over the paths of the uploads unopened; an empty list without any."""
    # Not gr.File: it puts the file field into a button, which screen readers cannot tell apart.
    photos = gr.UploadButton(label, file_count="multiple", file_types=["image"], size="md", elem_id=elem_id)

    def uploaded_paths(payload: ListFiles | None) -> Sequence[str]:
        return [] if payload is None else [_uploaded(photos, file.path) for file in payload]

    photos.preprocess = uploaded_paths
    _take_addresses_of_uploads(photos)
    return photos


def reason(error: Exception, path: str) -> str:
    """What is wrong with the file at `path`, for its owner: without the server's path."""
    if isinstance(error, FileNotFoundError):
        return f"This file was deleted, as every upload is within {FORGOTTEN_MINUTES} minutes; give it again."
    return str(error).replace(path, Path(path).name)


def _take_addresses_of_uploads(component: Component) -> None:
    """Make an input take an upload by its address; `emotion.ui.guard` refuses every other one."""
    keep = component.async_move_resource_to_block_cache

    async def keep_upload(path: str | Path | None) -> str | None:
        if path is not None and is_http_url_like(str(path)):
            # This is how gradio's programs name an upload; whatever host stands before it is not asked.
            _, found, upload = str(path).partition("/gradio_api/file=")
            if found:
                path = _uploaded(component, unquote(upload))
        return await keep(path)

    component.async_move_resource_to_block_cache = keep_upload


def _uploaded(component: Component, path: str) -> str:
    # Gradio checks only files that are marked as such, and leaves the mark to the client.
    try:
        given = Path(path).resolve()
        if given in EXAMPLES.values() or given.is_relative_to(Path(component.GRADIO_CACHE).resolve()):
            return path
    except (ValueError, OSError):  # no path at all
        pass
    # Nothing of what visitors give goes into a log.
    sentence = f"'{Path(path).name[:100]}' was not uploaded; upload it and give the path in the answer."
    raise gr.Error(sentence, print_exception=False)
