"""How the page looks: colours, style sheet, and a face, a picture or a figure as HTML."""

import base64
import io
from html import escape
from typing import Final

from PIL import Image

from emotion.labels import IMAGE_SIZE
from emotion.predict import Prediction

PIXELS: Final = f"{IMAGE_SIZE}&nbsp;&times;&nbsp;{IMAGE_SIZE}"
SHOWN_SIDE: Final = 1024
"""Longest side of the picture in the result, in pixels: sharp on a phone, quick to send."""

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


def percent(probability: float) -> str:
    """A probability as a whole percentage, in HTML; certainty is never claimed."""
    if probability < 0.01:
        return "&lt;1%"
    return "&gt;99%" if probability > 0.99 else f"{probability:.0%}"


def picture(photo: Image.Image, faces: list[Prediction]) -> str:
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
    return f'<div class="photo"><img src="{data_url(shown, "JPEG")}" alt="{alternative}">{boxes}</div>'


def card(number: int, face: Prediction) -> str:
    """One face as HTML: the class, a bar for every probability in the network's order, and what it saw."""
    bars = "".join(
        f'<li class="{"top" if name == face.emotion else ""}"><span>{escape(name)}</span>'
        f'<span class="track"><span class="bar" style="width:{p:.1%};background:{COLOURS.get(name, OTHER_COLOUR)}">'
        f'</span></span><span class="share">{percent(p)}</span></li>'
        for name, p in face.probabilities.items()
    )
    crop = data_url(Image.fromarray(face.crop), "PNG")
    return (
        f'<section class="face"><h2><span class="number">{number}</span>{escape(face.emotion)}, '
        f"{percent(face.confidence)}</h2><ol>{bars}</ol>"
        f'<figure><img src="{crop}" alt="Face {number} as the network saw it">'
        f"<figcaption>What the network saw: {PIXELS} grey pixels</figcaption></figure></section>"
    )


def data_url(image: Image.Image, format: str) -> str:
    """The picture, encoded as "PNG" or "JPEG", as an address that needs no file."""
    stream = io.BytesIO()
    image.save(stream, format)
    return f"data:image/{format.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
