"""The Photo tab: numbered faces and a bar chart of every expression."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

import gradio as gr
from gradio.components import Component

from emotion.faces import open_image
from emotion.predict import EmotionPredictor, Prediction
from emotion.ui.inputs import FORGOTTEN_MINUTES, photo_input
from emotion.ui.look import card, percent, picture
from emotion.ui.networks import Network

HINT: Final = "<p>The result appears here.</p>"


def photo_tab(networks: Mapping[str, Network], network: gr.Radio) -> dict[str, Component]:
    """Fill the Photo tab; its endpoint `/predict` is the page's public one.

    Arguments and return value are those of every tab, see `emotion.ui`.
    """
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            photo = photo_input("photo-input")
        with gr.Column(scale=3, min_width=300):
            summary = gr.HTML(
                HINT,
                # The live region must be there before what it announces.
                js_on_load="element.setAttribute('role', 'status')",
                elem_id="photo-summary",
            )
            whole = gr.Button("Treat the whole picture as a face", size="md", visible=False, elem_id="photo-whole")
            result = gr.HTML(elem_id="photo-result")

    first = next(iter(networks.values())).predictor

    def show(name: str, path: str | None) -> tuple[str, str, Any]:
        return _show(networks[name].predictor, path, whole_picture=False)

    def show_whole(name: str, path: str | None) -> tuple[str, str, Any]:
        return _show(networks[name].predictor, path, whole_picture=True)

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
            item["faces"] = [face.to_json() for face in first.predict(image)]
        except (ValueError, OSError) as error:
            item["error"] = _named(error, image)
        return item

    shown = [summary, result, whole]
    gr.on(
        [photo.change, network.change], show, [network, photo], shown, api_visibility="private", show_progress_on=result
    )
    whole.click(show_whole, [network, photo], shown, api_visibility="private", show_progress_on=result)
    gr.on([], predict, photo, gr.JSON(visible=False), api_name="predict")
    return {}


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
    cards = "".join(card(number, face) for number, face in enumerate(faces, 1))
    return (
        f"<p>{_sentence(faces, whole_picture)}</p>",
        f'{picture(photo, faces)}<div class="faces">{cards}</div>',
        gr.update(visible=False),
    )


def _named(error: Exception, path: str) -> str:
    """The error's sentence with the name of the upload where it has the server's path."""
    return str(error).replace(path, Path(path).name)


def _sentence(faces: list[Prediction], whole_picture: bool) -> str:
    """The result in words, as HTML: for people who don't see the picture and the chart."""
    likely = [f"{escape(face.emotion)} ({percent(face.confidence)})" for face in faces]
    if whole_picture:
        return f"The whole picture was taken for one face; its expression is most likely {likely[0]}."
    if len(faces) == 1:
        return f"One face was found; its expression is most likely {likely[0]}."
    numbered = ", ".join(f"{number} {text}" for number, text in enumerate(likely, 1))
    return f"{len(faces)} faces were found; their expressions are most likely: {numbered}."
