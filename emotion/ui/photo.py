"""The Photo tab: numbered faces, a bar chart of every expression, and where the evidence for it lies."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import gradio as gr
from gradio.components import Component
from PIL import Image

from emotion.faces import open_image
from emotion.networks import Network
from emotion.predict import Prediction
from emotion.ui.inputs import example_input, photo_input, photos_input, reason
from emotion.ui.look import (
    SAVE_JS,
    SCROLL_JS,
    announced,
    answer,
    card,
    csv_link,
    data_url,
    picture,
    poster,
    seen,
    table,
)

HINT: Final = "<p>The result appears here.</p>"
MAX_PHOTOS: Final = 50
"""Photos that are taken at once: on two cores they are done long before the first of them is deleted."""


def photo_tab(networks: Mapping[str, Network], network: gr.Radio, chosen: gr.State) -> dict[str, Component]:
    """Fill the Photo tab; its endpoint `/predict` is the page's public one.

    Arguments and return value are those of every tab, see `emotion.ui`.
    """
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            example = example_input("photo-example", render=False)
            photo = photo_input("photo-input", example)
            example.render()
        with gr.Column(scale=3, min_width=300):
            summary = announced(HINT, "photo-summary", "summary")
            whole = gr.Button("Treat the whole picture as a face", size="md", visible=False, elem_id="photo-whole")
            with gr.Row(visible=False, elem_id="photo-tools") as tools:
                evidence = gr.Checkbox(label="Show where the evidence lies", container=False, elem_id="photo-evidence")
                save = gr.Button("Download as a picture", size="md", elem_id="photo-save")
            result = gr.HTML(elem_id="photo-result")
    photos = photos_input("Choose several photos at once", "batch-input")
    rows = announced(None, "batch-result")
    is_whole, drawn = gr.State(False), gr.Textbox(visible=False)
    # What stands on the page: network, path and whether the evidence is shown; None after a file that was no photo.
    answered = gr.State()

    def show(name: str, path: str | None, evidence: bool, is_whole: bool, answered: Any) -> tuple[Any, ...]:
        # Gradio says twice that a photo has changed that replaces another one.
        if answered == (name, path, evidence):
            return *[gr.skip()] * 4, is_whole, answered
        return answer_anew(name, path, evidence, is_whole and answered is not None and answered[1] == path)

    def show_whole(name: str, path: str | None, evidence: bool) -> tuple[Any, ...]:
        return answer_anew(name, path, evidence, is_whole=True)

    def answer_anew(name: str, path: str | None, evidence: bool, is_whole: bool) -> tuple[Any, ...]:
        *parts, fine = _show(networks[name], path, evidence, is_whole)
        return *parts, is_whole, (name, path, evidence) if fine else None

    def draw(name: str, path: str | None, is_whole: bool) -> str:
        gone = gr.Error("There is no face to draw any more; give the photo again.", print_exception=False)
        if path is None:
            raise gone
        try:
            photo = open_image(path)
        except (ValueError, OSError) as error:
            raise gr.Error(reason(error, path), print_exception=False) from error
        if not (faces := _faces(networks[name], photo, is_whole)):
            raise gone
        return data_url(poster(photo, faces, networks[name].threshold), "PNG")

    def tabulate(name: str, paths: Sequence[str], progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        return _tabulate(networks[name], paths, progress)

    def predict(image: str | None) -> dict[str, Any]:
        """Find every face in a picture and give the probability of every expression.

        Returns {"image", "faces": [{"box": [x, y, w, h], "score", "emotion", "confidence", "probabilities"}],
        "error": null or text}, as `python -m emotion predict --json` does for one image; boxes in pixels of the
        upright picture, faces from the largest to the smallest.

        Args:
            image: The picture, uploaded or, for a tool, as a data URL; one of 48x48 pixels is taken for a face.
        """
        if image is None:
            return {"image": None, "faces": [], "error": "No picture was given; upload one."}
        item: dict[str, Any] = {"image": Path(image).name, "faces": [], "error": None}
        try:
            item["faces"] = [face.to_json() for face in next(iter(networks.values())).predictor.predict(image)]
        except (ValueError, OSError) as error:
            item["error"] = reason(error, image)
        return item

    given, shown = [network, photo, evidence], [summary, result, whole, tools, is_whole, answered]
    private: dict[str, Any] = {"api_visibility": "private", "show_progress_on": result}
    # One event for whatever changes: what of two came last would not always be shown last.
    gr.on(
        [photo.change, chosen.change, evidence.input],
        show,
        [*given, is_whole, answered],
        shown,
        trigger_mode="always_last",
        **private,
    ).then(None, photo, None, js=SCROLL_JS.format(id="photo-summary"), api_visibility="private")
    whole.click(show_whole, given, shown, **private)
    save.click(draw, [network, photo, is_whole], drawn, **private).success(
        None, drawn, None, js=SAVE_JS.format(name="expression.png"), api_visibility="private"
    )
    gr.on([chosen.change, photos.upload], tabulate, [network, photos], rows, api_visibility="private")
    gr.on([], predict, photo, gr.JSON(visible=False), api_name="predict")
    return {"example": example}


def _show(network: Network, path: str | None, evidence: bool, is_whole: bool) -> tuple[str, str, Any, Any, bool]:
    """Summary, result, whether the button and the tools below them are visible, and whether there is a picture."""
    hidden, visible = gr.update(visible=False), gr.update(visible=True)
    if path is None:
        return HINT, "", hidden, hidden, True
    try:
        photo = open_image(path)
    except (ValueError, OSError) as error:
        return f'<p class="error">{escape(reason(error, path))}</p>', "", hidden, hidden, False
    faces = _faces(network, photo, is_whole)
    if not faces:
        return "<p>No face was found in this picture.</p>", "", visible, hidden, True
    maps = [network.predictor.evidence(face.crop, face.emotion) if evidence else None for face in faces]
    cards = "".join(
        card(number, face, network.threshold, seen(number, face, map))
        for number, (face, map) in enumerate(zip(faces, maps, strict=True), 1)
    )
    return (
        f"<p>{_sentence(faces, network.threshold, is_whole)}</p>",
        f'{picture(photo, faces)}<div class="faces">{cards}</div>',
        hidden,
        visible,
        True,
    )


def _faces(network: Network, photo: Image.Image, is_whole: bool) -> list[Prediction]:
    return [network.predictor.predict_whole(photo)] if is_whole else network.predictor.predict(photo)


def _sentence(faces: Sequence[Prediction], threshold: float, is_whole: bool) -> str:
    """The result in words, as HTML: for people who don't see the picture and the chart."""
    answers = [answer(face, threshold) for face in faces]
    if is_whole:
        return f"The whole picture was taken for one face: {answers[0]}."
    if len(faces) == 1:
        return f"One face was found: {answers[0]}."
    return f"{len(faces)} faces were found. " + " ".join(f"Face {n}: {text}." for n, text in enumerate(answers, 1))


def _tabulate(network: Network, paths: Sequence[str], progress: gr.Progress) -> str:
    """One row per face of the pictures at `paths`, or the reason why there is none, as HTML with a CSV to download."""
    if not paths:
        return ""
    if len(paths) > MAX_PHOTOS:
        return (
            f'<p class="error">These are {len(paths)} photos; give up to {MAX_PHOTOS} at once, or use '
            "<code>python -m emotion predict</code>.</p>"
        )
    labels = network.predictor.model.labels
    shown, lines = [], []
    for path in progress.tqdm(paths, desc="Looking at your photos", unit="photos"):
        name = Path(path).name
        try:
            faces, why = network.predictor.predict(path), "No face was found."
        except (ValueError, OSError) as error:
            faces, why = [], reason(error, path)
        for number, face in enumerate(faces, 1):
            shown.append([escape(name), str(number), answer(face, network.threshold)])
            lines.append([name, number, *face.box, face.score, face.emotion, *face.probabilities.values(), ""])
        if not faces:
            shown.append([escape(name), "", f'<span class="error">{escape(why)}</span>'])
            lines.append([name, *[""] * (7 + len(labels)), why])
    heads = ["image", "face", "x", "y", "width", "height", "score", "emotion", *labels, "error"]
    link = csv_link("expressions.csv", heads, lines)
    return f"<p>{len(paths)} photos, {len(lines)} rows. {link}</p>{table(['Photo', 'Face', 'Expression'], shown)}"
