"""What visitors give: pictures of their own, which only this machine reads, and which are soon deleted."""

from pathlib import Path
from typing import Final

import gradio as gr
from gradio.data_classes import ImageData

SWEEP_SECONDS: Final = 60
KEEP_SECONDS: Final = 180
"""Once a minute, uploads older than three minutes are deleted."""
FORGOTTEN_MINUTES: Final = (SWEEP_SECONDS + KEEP_SECONDS) // 60


def photo_input(elem_id: str) -> gr.Image:
    """An image input that hands over the path of the upload unopened, or None without one.

    `emotion.faces.open_image` opens it, so that a bad file gets the same sentence here as on the command line.
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
    )

    def uploaded_path(payload: ImageData | None) -> str | None:
        if payload is None or payload.path is None:
            return None
        # Gradio checks only files that are marked as such, and leaves the mark to the client.
        if not Path(payload.path).resolve().is_relative_to(Path(photo.GRADIO_CACHE).resolve()):
            raise gr.Error(f"'{Path(payload.path).name}' was not uploaded; upload it and give the path in the answer.")
        return payload.path

    # Not in a subclass: gradio writes a .pyi file beside the module of every subclass.
    photo.preprocess = uploaded_path
    return photo
