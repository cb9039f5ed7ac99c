"""The Augmentation tab: a face through the eleven training steps, by the code that training runs."""

import math
from collections.abc import Collection, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

import gradio as gr
import numpy as np
import torch
from gradio.components import Component
from PIL import Image
from torch import Tensor

from emotion.faces import crop_whole, open_image
from emotion.labels import IMAGE_SIZE
from emotion.networks import Network
from emotion.predict import EmotionPredictor
from emotion.transforms import Normalize, Params, Step, get_enhanced_transforms_grayscale_48
from emotion.ui.inputs import example_input, open_data_url, photo_input, reason
from emotion.ui.look import PIXELS, SCROLL_JS, announced, data_url

PIPELINE: Final = get_enhanced_transforms_grayscale_48(training=True)
DRAWS: Final = 12
"""Faces in the batch that is drawn; the first of them is shown step by step."""
LAST_SEED: Final = 999
HALF: Final = IMAGE_SIZE / 2
"""Pixels per unit of position."""
HINT: Final = "<p>Give a photo: what training makes of the face appears here.</p>"

# What the page calls each step.
TITLES: Final = {
    "RandomHorizontalFlip": "Mirror",
    "RandomRotation": "Rotation",
    "RandomAffine": "Shift, scale, shear",
    "RandomPerspectiveSmall": "Perspective",
    "RandomContrast": "Contrast",
    "RandomBrightness": "Brightness",
    "RandomSharpness": "Sharpness",
    "AdaptiveHistogramEqualization": "Local contrast (CLAHE)",
    "ToTensor": "To fractions",
    "Normalize": "Normalisation",
    "GrayscaleNoise": "Noise",
}
RANDOM: Final = [type(step).__name__ for step in PIPELINE.steps if step.random]
"""The steps that can be switched off; the other two make network input out of pixels."""


def augmentation_tab(networks: Mapping[str, Network], network: gr.Radio, chosen: gr.State) -> dict[str, Component]:
    """Fill the Augmentation tab and add its endpoint, `/augment`.

    Arguments and return value are those of every tab, see `emotion.ui`.
    """
    # Any of them: only its detector counts here.
    predictor = next(iter(networks.values())).predictor
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            example = example_input("augmentation-example", render=False)
            photo = photo_input("augmentation-input", example)
            example.render()
            steps = gr.CheckboxGroup(
                [(TITLES[name], name) for name in RANDOM],
                value=RANDOM,
                label="Steps",
                info="The others keep what they have drawn when you switch one off.",
                elem_id="augmentation-steps",
            )
        with gr.Column(scale=3, min_width=300):
            with gr.Row(elem_id="augmentation-sliders"):
                seed = gr.Slider(
                    0, LAST_SEED, 0, step=1, precision=0, label="Seed", min_width=140, elem_id="augmentation-seed"
                )
                strength = gr.Slider(
                    0, 1, 0.5, step=0.05, label="Strength", min_width=140, elem_id="augmentation-strength"
                )
            summary = announced(HINT, "augmentation-summary", "summary")
            result = gr.HTML(elem_id="augmentation-result")
    # The face stays with the visitor, who sends it along with every change: the server keeps none. It is on the page,
    # not left out like what is never shown, since its change is what draws.
    face = gr.Textbox(visible="hidden")

    def find(path: str | None) -> tuple[str, str]:
        if path is None:
            return "", HINT
        try:
            crop, sentence = _find_face(predictor, path)
        except (ValueError, OSError) as error:
            return "", f'<p class="error">{escape(reason(error, path))}</p>'
        return _png(crop), f"<p>{sentence}</p>"

    def show(face: str, seed: int, strength: float, steps: list[str]) -> str:
        if not face:
            return ""
        try:
            crop = crop_whole(open_data_url(face))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return _show(crop, seed, strength, steps)

    def augment(image: str | None, seed: int, strength: float, steps: list[str]) -> dict[str, Any]:
        """Show what training makes of the most prominent face of a picture, step by step.

        Without a face in it, the picture's centre square is taken. Returns {"image": name, "face": picture, "steps":
        [{"step", "parameters", "picture"}], "draws": [picture], "error": null or text}. A picture is a grey PNG of
        48x48 pixels, as a data URL or, for a tool, as "picture N" that follows; parameters are what the step has drawn
        (shifts and corners in half sides of the picture), none if it draws nothing or is off; "draws" are twelve faces
        of one batch after all steps, "steps" the way of the first one.

        Args:
            image: The picture, uploaded or, for a tool, as a data URL.
            seed: Decides the draws: 0, the default, to 999.
            strength: 0 (no change) to 1 (full ranges).
            steps: The random steps that are on; without some of them, the others keep their draws.
        """
        item: dict[str, Any] = {"image": image and Path(image).name, "face": None, "steps": [], "draws": []}
        if image is None:
            return item | {"error": "No picture was given; upload one."}
        try:
            crop, _ = _find_face(predictor, image)
        except (ValueError, OSError) as error:
            return item | {"error": reason(error, image)}
        views, draws = _augment(crop, seed, strength, steps)
        return item | {"face": _png(crop), "steps": views, "draws": draws, "error": None}

    settings = [seed, strength, steps]
    photo.change(find, photo, [face, summary], api_visibility="private", show_progress_on=result).then(
        None, photo, None, js=SCROLL_JS.format(id="augmentation-sliders"), api_visibility="private"
    )
    # The only one that fills the result: what of two came last would not always be shown last.
    gr.on(
        [component.change for component in (face, *settings)],
        show,
        [face, *settings],
        result,
        # While a slider moves, only its latest place counts.
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    ).then(None, face, None, js=SCROLL_JS.format(id="augmentation-sliders"), api_visibility="private")
    gr.on([], augment, [photo, *settings], gr.JSON(visible=False), api_name="augment")
    return {"example": example, "seed": seed, "strength": strength}


def trace(crop: np.ndarray, seed: int, strength: float, steps: Collection[str]) -> list[tuple[Step, Params, Tensor]]:
    """A batch that holds one face `DRAWS` times, through the training pipeline as the trainer's loader calls it.

    Args:
        crop: grey uint8 (48, 48).
        seed: decides the draws.
        strength: 0 (no change) to 1 (full ranges).
        steps: class names of the random steps that are on.

    Returns:
        What `emotion.transforms.Pipeline.trace` gives, with pictures of shape (`DRAWS`, 1, 48, 48).
    """
    batch = torch.from_numpy(crop)[None, None].repeat(DRAWS, 1, 1, 1)
    off = [step for step in PIPELINE.steps if step.random and type(step).__name__ not in steps]
    return PIPELINE.trace(batch, strength, torch.Generator().manual_seed(seed), off)


def _png(crop: np.ndarray) -> str:
    return data_url(Image.fromarray(crop), "PNG")


def _find_face(predictor: EmotionPredictor, path: str) -> tuple[np.ndarray, str]:
    """The most prominent face of a photo, or its centre square, as grey uint8 (48, 48), and a sentence on which."""
    photo = open_image(path)
    faces = predictor.predict(photo)
    if not faces:
        return crop_whole(photo), "No face was found in this picture: its centre is taken for one."
    found = "One face was found" if len(faces) == 1 else f"{len(faces)} faces were found; the largest is used"
    return faces[0].crop, f"{found}."


def _augment(
    crop: np.ndarray, seed: int, strength: float, steps: Collection[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The "steps" and "draws" of `/augment`."""
    views = []
    mean, std = 0.0, 1.0
    for step, params, batch in trace(crop, seed, strength, steps):
        if isinstance(step, Normalize):
            mean, std = step.mean, step.std
        levels = ((batch[:, 0] * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        parameters = {name: values[0].tolist() for name, values in params.items()}
        views.append({"step": type(step).__name__, "parameters": parameters, "picture": _png(levels[0])})
    return views, [_png(picture) for picture in levels]


def _show(crop: np.ndarray, seed: int, strength: float, steps: Collection[str]) -> str:
    """The face, the pictures after each step and the grid of draws as HTML."""
    views, draws = _augment(crop, seed, strength, steps)
    cells = _cell(_png(crop), "The face before any step", "Start", f"{PIXELS} grey pixels")
    for number, view in enumerate(views, 1):
        name, title = view["step"], f"{number} {TITLES[view['step']]}"
        words = "off" if name in RANDOM and name not in steps else _words(name, view["parameters"])
        cells += _cell(view["picture"], f"The face after step {number}", title, words)
    grid = "".join(f'<li><img src="{draw}" alt="Draw {number}"></li>' for number, draw in enumerate(draws, 1))
    return (
        f'<h2>Step by step</h2><ol class="steps">{cells}</ol><h2>{len(draws)} random draws</h2>'
        "<p>Training sees the same face in such guises, in every epoch another one. The first is the one above.</p>"
        f'<ol class="draws">{grid}</ol>'
    )


def _cell(picture: str, alternative: str, title: str, words: str) -> str:
    return (
        f'<li><figure><img src="{picture}" alt="{alternative}">'
        f"<figcaption><b>{title}</b><br>{words}</figcaption></figure></li>"
    )


def _words(name: str, parameters: Mapping[str, Any]) -> str:
    """What a step has drawn, in words, as HTML; lengths in pixels of the face."""
    match parameters:
        case {"flip": flip}:
            return "left and right swapped" if flip else "left as it is"
        case {"degrees": degrees}:
            return f"{abs(degrees):.1f}&deg; {'anticlockwise' if degrees > 0 else 'clockwise'}"
        case {"shift_x": x, "shift_y": y, "scale": scale, "shear": shear}:
            across, down = "right" if x > 0 else "left", "down" if y > 0 else "up"
            shift = f"{abs(x) * HALF:.1f} px {across}, {abs(y) * HALF:.1f} px {down}"
            return f"{shift}, size &times;{scale:.2f}, shear {abs(shear):.1f}&deg;"
        case {"corners": corners}:
            return f"corners moved {', '.join(f'{math.hypot(*corner) * HALF:.1f}' for corner in corners)} px"
        case {"factor": factor}:
            return f"&times;{factor:.2f}"
        case {"equalize": equalize}:
            return "evened out" if equalize else "left as it is"
        case {"std": std}:
            return f"standard deviation {std:.3f}"
    return {"ToTensor": "0 to 255 become 0 to 1", "Normalize": "0 to 1 become &minus;1 to 1"}.get(name, "no change")
