"""The page: a photo in, numbered faces and a bar chart of every expression out. The only module that imports gradio."""

import base64
import io
import os
from html import escape
from pathlib import Path
from typing import Any, Final

from PIL import Image

# Before gradio is there, so that no part of it can have asked earlier.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr
from gradio.data_classes import ImageData

from emotion.faces import open_image
from emotion.labels import IMAGE_SIZE
from emotion.predict import EmotionPredictor, Prediction

TITLE: Final = "What does this face express?"
PIXELS: Final = f"{IMAGE_SIZE}&nbsp;&times;&nbsp;{IMAGE_SIZE}"
HINT: Final = "<p>The result appears here.</p>"
SHOWN_SIDE: Final = 1024
"""Longest side of the picture in the result, in pixels: sharp on a phone, quick to send."""
SWEEP_SECONDS: Final = 60
KEEP_SECONDS: Final = 180
"""Once a minute, uploads older than three minutes are deleted."""
FORGOTTEN_MINUTES: Final = (SWEEP_SECONDS + KEEP_SECONDS) // 60

# At least 3:1 against the cards of both themes, as WCAG 2.2 asks of graphics.
COLOURS: Final = {
    "angry": "#dc2626",
    "disgust": "#4d7c0f",
    "fear": "#8b5cf6",
    "happy": "#c2700a",
    "sad": "#2563eb",
    "surprise": "#db2777",
    "neutral": "#64748b",
    "contempt": "#0d9488",
}
OTHER_COLOUR: Final = "#0284c7"
"""For the classes of a network that was trained on other folders."""

CSS: Final = """
.html-container { padding: 0 !important; }
footer, footer button, #photo-input .or, #photo-input .wrap { color: var(--body-text-color) !important; }
.gradio-container :focus-visible { outline: 2px solid var(--color-accent) !important; outline-offset: 2px; }
#photo-input .icon:not(.selected) { color: var(--body-text-color); }
#intro h1 { font-size: 1.75rem; font-weight: 650; line-height: 1.2; margin: .5rem 0 .25rem; }
#intro p, #notes p { max-width: 68ch; margin: 0 0 .5rem; line-height: 1.5; }
#notes { margin-top: 1rem; }
#notes p { font-size: .9375rem; }
#photo-summary p { margin: 0; font-size: 1.125rem; line-height: 1.5; }
#photo-summary .error { border-left: 4px solid #dc2626; padding-left: .75rem; }
.photo { position: relative; overflow: hidden; border-radius: 8px; width: fit-content; margin: 0 auto 1rem; }
.photo img { display: block; max-width: 100%; max-height: 36vh; }
.box { position: absolute; border: 2px solid #fff; outline: 2px solid #111; border-radius: 2px; }
.photo .number { position: absolute; padding: 0 .25em; font-size: .75rem; border-width: 1px; }
.number { display: inline-block; min-width: 1.5em; padding: 0 .4em; font-size: .875rem; font-weight: 650;
  line-height: 1.5; text-align: center; color: #fff; background: #111; border: 2px solid #fff; border-radius: 4px; }
.faces { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
.face { padding: 1rem; background: var(--background-fill-primary); border: 1px solid var(--border-color-primary);
  border-radius: 8px; }
.face h2 { display: flex; gap: .5rem; align-items: center; margin: 0 0 .75rem; font-size: 1.25rem; font-weight: 650;
  overflow-wrap: anywhere; }
.face ol { list-style: none; margin: 0; padding: 0; display: grid; gap: .375rem; }
.face li { display: grid; grid-template-columns: 5.5rem 1fr 3rem; gap: .5rem; align-items: center; }
.face li > span:first-child { overflow-wrap: anywhere; }
.face .top { font-weight: 650; }
.face .track { height: .875rem; border-radius: 3px; background: color-mix(in srgb, currentColor 8%, transparent); }
.face .bar { display: block; height: 100%; border-radius: 3px; min-width: 2px; }
.face .share { text-align: right; font-variant-numeric: tabular-nums; }
.face figure { display: flex; gap: .75rem; align-items: center; margin: 1rem 0 0; }
.face figure img { width: 144px; height: 144px; image-rendering: pixelated; border-radius: 4px; }
.face figcaption { font-size: .875rem; line-height: 1.4; }
"""

LAUNCH_OPTIONS: Final[dict[str, Any]] = {
    "theme": gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        # Names of what the visitor has: a font that the page brought along would be one more request.
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    ),
    "css": CSS,
    "run_history": False,
    "footer_links": ["api", "settings"],
    "max_file_size": "64mb",
}
"""Keyword arguments of `gr.Blocks.launch` for the page; address and sharing are the caller's."""


def build_page(predictor: EmotionPredictor) -> gr.Blocks:
    """Build the page and its one public endpoint, `/predict`; launch it with `LAUNCH_OPTIONS`.

    Args:
        predictor: answers every visitor, from several threads.
    """
    with gr.Blocks(title=TITLE, delete_cache=(SWEEP_SECONDS, KEEP_SECONDS)) as page:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Give a photo with one or more faces. A small network, which sees each face as "
            f"{PIXELS} grey pixels, says which expression it shows.</p>",
            elem_id="intro",
        )
        with gr.Tab("Photo", id="photo"):
            _photo_tab(predictor)
        gr.HTML(
            "<p><strong>An expression is not a feeling.</strong> The percentages say how people would probably label "
            "the face in the picture. They say nothing about what the person feels, and they are often wrong: "
            "don't judge anyone by them.</p>"
            "<p><strong>Your photo stays yours.</strong> Only the machine that runs this page reads it, and deletes "
            f"it within {FORGOTTEN_MINUTES} minutes. Nothing is logged.</p>",
            elem_id="notes",
        )
    return page


def _photo_tab(predictor: EmotionPredictor) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            photo = _photo_input("photo-input")
        with gr.Column(scale=3, min_width=300):
            summary = gr.HTML(
                HINT,
                # The live region must be there before what it announces.
                js_on_load="element.setAttribute('role', 'status')",
                elem_id="photo-summary",
            )
            whole = gr.Button("Treat the whole picture as a face", size="md", visible=False, elem_id="photo-whole")
            result = gr.HTML(elem_id="photo-result")

    def show(path: str | None) -> tuple[str, str, Any]:
        return _show(predictor, path, whole_picture=False)

    def show_whole(path: str | None) -> tuple[str, str, Any]:
        return _show(predictor, path, whole_picture=True)

    def predict(image: str | None) -> dict[str, Any]:
        """Find every face in a picture and give the probability of every expression.

        Returns {"image", "faces": [{"box": [x, y, w, h], "score", "emotion", "confidence", "probabilities"}],
        "error": null or text}, as `python -m emotion predict --json` does for one image; boxes in pixels of the
        upright picture, faces from the largest to the smallest.
        """
        if image is None:
            return {"image": None, "faces": [], "error": "No picture was given; upload one."}
        item: dict[str, Any] = {"image": Path(image).name, "faces": [], "error": None}
        try:
            item["faces"] = [face.to_json() for face in predictor.predict(image)]
        except (ValueError, OSError) as error:
            item["error"] = _named(error, image)
        return item

    shown = [summary, result, whole]
    photo.change(show, photo, shown, api_visibility="private", show_progress_on=result)
    whole.click(show_whole, photo, shown, api_visibility="private", show_progress_on=result)
    gr.on([], predict, photo, gr.JSON(visible=False), api_name="predict")


def _photo_input(elem_id: str) -> gr.Image:
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


def _show(predictor: EmotionPredictor, path: str | None, whole_picture: bool) -> tuple[str, str, Any]:
    """Summary, result and the state of the button below them, for the upload at `path`."""
    if path is None:
        return HINT, "", gr.update(visible=False)
    try:
        photo = open_image(path)
    except FileNotFoundError:
        sentence = f"This photo was deleted, as every photo is within {FORGOTTEN_MINUTES} minutes; give it again."
        return f'<p class="error">{sentence}</p>', "", gr.update(visible=False)
    except ValueError as error:
        return f'<p class="error">{escape(_named(error, path))}</p>', "", gr.update(visible=False)
    faces = [predictor.predict_whole(photo)] if whole_picture else predictor.predict(photo)
    if not faces:
        return "<p>No face was found in this picture.</p>", "", gr.update(visible=True)
    cards = "".join(_card(number, face) for number, face in enumerate(faces, 1))
    return (
        f"<p>{_sentence(faces, whole_picture)}</p>",
        f'{_picture(photo, faces)}<div class="faces">{cards}</div>',
        gr.update(visible=False),
    )


def _named(error: Exception, path: str) -> str:
    """The error's sentence with the name of the upload where it has the server's path."""
    return str(error).replace(path, Path(path).name)


def _sentence(faces: list[Prediction], whole_picture: bool) -> str:
    """The result in words, as HTML: for people who don't see the picture and the chart."""
    likely = [f"{escape(face.emotion)} ({_percent(face.confidence)})" for face in faces]
    if whole_picture:
        return f"The whole picture was taken for one face; its expression is most likely {likely[0]}."
    if len(faces) == 1:
        return f"One face was found; its expression is most likely {likely[0]}."
    numbered = ", ".join(f"{number} {text}" for number, text in enumerate(likely, 1))
    return f"{len(faces)} faces were found; their expressions are most likely: {numbered}."


def _percent(probability: float) -> str:
    if probability < 0.01:
        return "&lt;1%"
    return "&gt;99%" if probability > 0.99 else f"{probability:.0%}"


def _picture(photo: Image.Image, faces: list[Prediction]) -> str:
    """The photo with a numbered box around each face, as HTML without a file of its own."""
    boxes = ""
    for number, face in enumerate(faces, 1):
        x, y, width, height = (
            f"{100 * pixels / side:.2f}%" for pixels, side in zip(face.box, photo.size * 2, strict=True)
        )
        # The number stands on the box, but never beyond the picture.
        left, top = f"max(0px, min({x} - 2px, 100% - 1.5rem))", f"max(0px, {y} - 1.5rem)"
        boxes += (
            f'<span class="box" style="left:{x};top:{y};width:{width};height:{height}"></span>'
            f'<b class="number" style="left:{left};top:{top}" aria-hidden="true">{number}</b>'
        )
    scale = min(1.0, SHOWN_SIDE / max(photo.size))
    shown = photo.resize([max(1, round(side * scale)) for side in photo.size], reducing_gap=2.0)
    alternative = f"Your photo with a numbered box around {'the face' if len(faces) == 1 else 'each face'}"
    return f'<div class="photo"><img src="{_data_url(shown, "JPEG")}" alt="{alternative}">{boxes}</div>'


def _card(number: int, face: Prediction) -> str:
    """One face as HTML: the class, a bar for every probability in the network's order, and what it saw."""
    bars = "".join(
        f'<li class="{"top" if name == face.emotion else ""}"><span>{escape(name)}</span>'
        f'<span class="track"><span class="bar" style="width:{p:.1%};background:{COLOURS.get(name, OTHER_COLOUR)}">'
        f'</span></span><span class="share">{_percent(p)}</span></li>'
        for name, p in face.probabilities.items()
    )
    crop = _data_url(Image.fromarray(face.crop), "PNG")
    return (
        f'<section class="face"><h2><span class="number">{number}</span>{escape(face.emotion)}, '
        f"{_percent(face.confidence)}</h2><ol>{bars}</ol>"
        f'<figure><img src="{crop}" alt="Face {number} as the network saw it">'
        f"<figcaption>What the network saw: {PIXELS} grey pixels</figcaption></figure></section>"
    )


def _data_url(image: Image.Image, format: str) -> str:
    stream = io.BytesIO()
    image.save(stream, format)
    return f"data:image/{format.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
