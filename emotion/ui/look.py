"""How the page looks: colours, style sheet, and a face, a picture or a figure as HTML."""

import base64
import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape, unescape
from typing import Any, Final

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from emotion.follow import TIMELINE_SECONDS, Sample
from emotion.labels import IMAGE_SIZE
from emotion.predict import Prediction

PIXELS: Final = f"{IMAGE_SIZE}&nbsp;&times;&nbsp;{IMAGE_SIZE}"
SHOWN_SIDE: Final = 1024
"""Longest side of the picture in the result, in pixels: sharp on a phone, quick to send."""
SMALLEST_SIDE: Final = 240
"""Longest side of a smaller picture in the result, in pixels."""
EVIDENCE_SIDE: Final = 288
EVIDENCE_COLOUR: Final = "#ff6a00"
WIDTH: Final = 300
"""Of the timeline, in its own units; it is 100 high."""
GAP_SECONDS: Final = 2
"""Times without a face that are longer interrupt the timeline."""
SHORTEST_SECONDS: Final = 0.1
"""Width of the timeline of a clip with a single frame."""
SAVE_JS: Final = (
    "(url) => {{ const link = document.createElement('a'); link.href = url; link.download = '{name}'; link.click() }}"
)
"""Saves a data address that an event hands over as the file `name`."""
SCROLL_JS: Final = """(given) => {{
  const result = document.getElementById("{id}"), name = given?.path ?? given;
  if (name && name !== result.ledTo && result.getBoundingClientRect().bottom > innerHeight) result.scrollIntoView();
  result.ledTo = name;
}}"""
"""On a phone, the result is below what is seen while a photo is given: leads there, once for what is given."""

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
.dark { --color-accent: var(--primary-400); }
.html-container { padding: 0 !important; }
footer, footer button, .photo-input .or, .photo-input .wrap { color: var(--body-text-color) !important; }
.gradio-container :focus-visible { outline: 2px solid var(--color-accent) !important; outline-offset: 2px; }
.photo-input img { object-fit: contain !important; }
.photo-input .icon:not(.selected) { color: var(--body-text-color); }
@media (max-width: 640px) { #tabs [role=tab] { padding: 0 .5rem; } }
#intro h1 { font-size: 1.75rem; font-weight: 650; line-height: 1.2; margin: .5rem 0 .25rem; }
#intro p, #notes p { max-width: 68ch; margin: 0 0 .5rem; line-height: 1.5; }
#notes { margin-top: 1rem; }
#notes p { font-size: .9375rem; }
.summary p { margin: 0; font-size: 1.125rem; line-height: 1.5; }
.summary .error { border-left: 4px solid #dc2626; padding-left: .75rem; }
.photo { position: relative; overflow: hidden; border-radius: 8px; width: fit-content; margin: 0 auto 1rem; }
.photo img { display: block; max-width: 100%; max-height: 36vh; }
.box { position: absolute; border: 2px solid #fff; outline: 2px solid #111; border-radius: 2px; }
.photo .number { position: absolute; padding: 0 .25em; font-size: .75rem; border-width: 1px; }
.number { display: inline-block; min-width: 1.5em; padding: 0 .4em; font-size: .875rem; font-weight: 650;
  line-height: 1.5; text-align: center; color: #fff; background: #111; border: 2px solid #fff; border-radius: 4px; }
.faces { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
.face, .followed { padding: 1rem; background: var(--background-fill-primary); border-radius: 8px;
  border: 1px solid var(--border-color-primary); }
.face h2, .followed h2 { display: flex; gap: .5rem; align-items: start; margin: 0 0 .75rem; font-size: 1.25rem;
  font-weight: 650; overflow-wrap: anywhere; }
:is(.face, .followed) h2 .number { flex: none; }
.face ol { list-style: none; margin: 0; padding: 0; display: grid; gap: .375rem; }
.face li { display: grid; grid-template-columns: 5.5rem 1fr 3rem; gap: .5rem; align-items: center; }
.face li > span:first-child { overflow-wrap: anywhere; }
.face .top { font-weight: 650; }
.face .track { height: .875rem; border-radius: 3px; background: color-mix(in srgb, currentColor 8%, transparent); }
.face .bar { display: block; height: 100%; border-radius: 3px; min-width: 2px; }
.face .share { text-align: right; font-variant-numeric: tabular-nums; }
.face .body, .face .figures { display: flex; flex-wrap: wrap; gap: 1rem; }
.face ol { flex: 1 1 15rem; align-content: start; }
.face figure { width: 9rem; margin: 0; }
.face figure img { width: 100%; aspect-ratio: 1; image-rendering: pixelated; border-radius: 4px; }
.face figcaption { margin-top: .375rem; font-size: .875rem; line-height: 1.4; }
/* Hidden, as gradio has it, would keep the sliders from staying in sight. */
.gradio-container { overflow: clip !important; }
#augmentation-sliders { position: sticky; top: 0; z-index: 1; }
#augmentation-result h2 { font-size: 1.25rem; font-weight: 650; margin: 0 0 .5rem; }
#augmentation-result p { max-width: 68ch; margin: 0 0 .75rem; line-height: 1.5; }
.steps, .draws { list-style: none; margin: 0 0 1.5rem; padding: 0; display: grid; gap: 1rem; }
.steps { grid-template-columns: repeat(auto-fill, minmax(144px, 1fr)); }
.draws { grid-template-columns: repeat(auto-fill, 96px); }
.steps img, .draws img { width: 144px; height: 144px; image-rendering: pixelated; border-radius: 4px; }
.draws img { width: 96px; height: 96px; }
.steps figcaption { font-size: .875rem; line-height: 1.4; margin-top: .25rem; }
#about-card { max-width: 60rem; }
#about-card img { max-width: 100%; border-radius: 8px; }
#about-card .scrolling { overflow-x: auto; }
#about-card :is(table, tr, th, td) { border: 0; }
#about-card :is(th, td) { padding: .25rem .625rem .25rem 0; border-bottom: 1px solid var(--border-color-primary);
  font-size: .875rem; text-align: left; white-space: nowrap; }
#about-card :is(th, td):first-child { min-width: 6rem; white-space: normal; word-break: normal; }
#about-card pre, #about-card code { white-space: pre-wrap; overflow-wrap: anywhere; }
#live-stage { position: relative; gap: 0; }
#live-camera { min-height: 240px; }
#live-camera video { height: auto; object-fit: contain; }
#live-boxes { position: absolute; top: 1px; left: 1px; width: calc(100% - 2px) !important; pointer-events: none; }
.overlay { position: relative; overflow: hidden; }
.overlay .number { position: absolute; }
#live-help p { margin: 0 0 .25rem; line-height: 1.5; }
#live-result .rate { margin: 0 0 .75rem; font-variant-numeric: tabular-nums; }
.gradio-container:has(#live-camera [title="start recording"]) #live-result .rate { display: none; }
.timeline { margin: 1rem 0 0; }
.timeline svg { display: block; width: 100%; height: 9rem; margin: .375rem 0 .25rem; fill: none; stroke-width: 2px;
  background: var(--background-fill-primary); border: 1px solid var(--border-color-primary); border-radius: 4px; }
.timeline path { vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.timeline p { display: flex; justify-content: space-between; margin: 0 0 .5rem; font-size: .875rem; }
.timeline ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 0; padding: 0;
  font-size: .875rem; }
.timeline .bar { display: inline-block; width: .75rem; height: .75rem; border-radius: 3px; margin-right: .375rem; }
.followed { margin-bottom: 1rem; }
.moments { list-style: none; margin: 0; padding: 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(5rem, 1fr)); }
.moments img { width: 5rem; height: 5rem; image-rendering: pixelated; border-radius: 4px; }
.moments figcaption { font-size: .875rem; line-height: 1.4; margin-top: .25rem; }
#video-input .video-container { min-height: 240px; }
#video-input video { max-height: 280px; }
#video-input :is([aria-label^="Trim video"], [aria-label^="Reset video"]) { display: none; }
.error { color: var(--error-text-color); }
.rows.rows { width: 100%; border-collapse: collapse; border: 0; margin-top: .75rem; }
.rows.rows :is(tr, th, td) { padding: .375rem .75rem .375rem 0; text-align: left; vertical-align: top; border: 0;
  white-space: normal; overflow-wrap: anywhere; }
.rows.rows tr { border-bottom: 1px solid var(--border-color-primary); }
.rows.rows th { min-width: 3rem; }
.rows.rows td:first-child { min-width: 6rem; }
.download { text-decoration: underline; }
/* What gradio divides in the footer is hidden on a phone. */
@media (width <= 640px) { footer .divider { display: none; } }
#batch-input { margin-top: 1rem; width: fit-content; }
#batch-result p { margin: 0; }
:is(#batch-result, #video-result):has(.progress-text) { min-height: 8rem; }
/* On a phone, gradio lays it over the bar. */
:is(#batch-result, #video-result) .progress-text { position: static; transform: none; }
.examples .wrap { display: grid !important; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .375rem; }
.examples label { flex-direction: column; gap: .25rem; padding: .25rem !important; margin: 0 !important;
  font-size: .8125rem; }
.examples label:has(:checked) { outline: 2px solid var(--color-accent); }
.examples label::before { width: 100%; aspect-ratio: 1; border-radius: 4px; }
.examples label span { margin: 0; }
.examples label input { position: absolute; opacity: 0; }
.examples label:has(:focus-visible) { outline: 2px solid var(--color-accent); outline-offset: 2px; }
"""


def announced(html: str | None, elem_id: str, elem_classes: str | None = None) -> gr.HTML:
    """A place for HTML whose changes screen readers read out; arguments are those of `gr.HTML`."""
    # The live region must be there before what it announces.
    role = "element.setAttribute('role', 'status')"
    return gr.HTML(html, js_on_load=role, elem_id=elem_id, elem_classes=elem_classes)


def percent(probability: float) -> str:
    """A probability as a whole percentage, in HTML; certainty is never claimed."""
    if probability < 0.01:
        return "&lt;1%"
    return "&gt;99%" if probability > 0.99 else f"{probability:.0%}"


def candidates(face: Prediction, threshold: float) -> list[str]:
    """The most probable class, or, where its probability is below `threshold`, the two most probable ones."""
    ranked = sorted(face.probabilities, key=face.probabilities.__getitem__, reverse=True)
    return ranked[: 2 if face.confidence < threshold else 1]


def answer(face: Prediction, threshold: float) -> str:
    """What the network says about a face, as part of a sentence in HTML; `threshold` is that of `candidates`."""
    names = [f"{escape(name)} ({percent(face.probabilities[name])})" for name in candidates(face, threshold)]
    return f"most likely {names[0]}" if len(names) == 1 else f"no class is clear, {' or '.join(names)}"


def picture(photo: Image.Image, faces: Sequence[Prediction]) -> str:
    """The photo with a numbered box around each face, as HTML without a file of its own."""
    alternative = f"Your photo with a numbered box around {'the face' if len(faces) == 1 else 'each face'}"
    shown, numbered = data_url(_shown(photo), "JPEG"), boxes(dict(enumerate(faces, 1)), photo.size)
    return f'<div class="photo"><img src="{shown}" alt="{alternative}">{numbered}</div>'


def boxes(faces: Mapping[int, Prediction], size: tuple[int, int]) -> str:
    """A numbered box around each face as HTML, to be laid over a picture whose width and height are `size` pixels."""
    html = ""
    for number, face in faces.items():
        x, y, width, height = (f"{100 * pixels / side:.2f}%" for pixels, side in zip(face.box, size * 2, strict=True))
        # The number stands on the box, but never beyond the picture.
        left, top = f"max(0px, min({x} - 2px, 100% - 1.5rem))", f"max(0px, {y} - 1.5rem)"
        html += (
            f'<span class="box" style="left:{x};top:{y};width:{width};height:{height}"></span>'
            f'<b class="number" style="left:{left};top:{top}" aria-hidden="true">{number}</b>'
        )
    return html


def card(number: int, face: Prediction, threshold: float, figures: str = "") -> str:
    """One face as HTML: the answer, and a bar for every probability in the network's order.

    Args:
        number: as on the picture.
        face: the face.
        threshold: that of `candidates`.
        figures: what stands beside the bars, see `seen`.
    """
    names = candidates(face, threshold)
    if len(names) == 1:
        title = f"{escape(names[0])}, {percent(face.confidence)}"
    else:
        title = f"{' or '.join(map(escape, names))}? No class is clear"
    bars = "".join(
        f'<li class="{"top" if name in names else ""}"><span>{escape(name)}</span>'
        f'<span class="track"><span class="bar" style="width:{p:.1%};background:{COLOURS.get(name, OTHER_COLOUR)}">'
        f'</span></span><span class="share">{percent(p)}</span></li>'
        for name, p in face.probabilities.items()
    )
    return (
        f'<section class="face"><h2><span class="number">{number}</span><span>{title}</span></h2>'
        f'<div class="body"><ol>{bars}</ol>{figures}</div></section>'
    )


def seen(number: int, face: Prediction, evidence: np.ndarray | None = None) -> str:
    """What the network saw of a face, as HTML; `evidence`, float (48, 48) in [0, 1], is shown over it."""
    figures = _figure(
        Image.fromarray(face.crop),
        f"Face {number} as the network saw it",
        f"What the network saw: {PIXELS} grey pixels",
    )
    if evidence is not None:
        caption = f"Where the evidence for {escape(face.emotion)} lies: the stronger the orange, the more"
        figures += _figure(_tinted(face.crop, evidence), f"Face {number} under a map of the evidence", caption)
    return f'<div class="figures">{figures}</div>'


def _figure(image: Image.Image, alternative: str, caption: str) -> str:
    return (
        f'<figure><img src="{data_url(image, "PNG")}" alt="{alternative}"><figcaption>{caption}</figcaption></figure>'
    )


def _tinted(crop: np.ndarray, evidence: np.ndarray) -> Image.Image:
    """The crop, grey uint8 (48, 48), under orange that is the stronger the larger `evidence` in [0, 1] is."""
    size = (EVIDENCE_SIDE, EVIDENCE_SIDE)
    face = Image.fromarray(crop).resize(size, Image.Resampling.NEAREST).convert("RGB")
    strength = Image.fromarray(np.uint8(np.clip(evidence, 0, 1) * 0.8 * 255)).resize(size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", size, EVIDENCE_COLOUR), face, strength)


def _shown(photo: Image.Image) -> Image.Image:
    """The photo in a size that can be looked at."""
    longest = max(photo.size)
    scale = min(SHOWN_SIDE / longest, max(1.0, SMALLEST_SIDE / longest))
    return photo.resize([max(1, round(side * scale)) for side in photo.size], reducing_gap=2.0)


def poster(photo: Image.Image, faces: Sequence[Prediction], threshold: float) -> Image.Image:
    """The photo with its numbered boxes and every face's bars, as one RGB picture to keep or to share.

    Args:
        photo: RGB picture.
        faces: its faces; the boxes are in its pixels.
        threshold: that of `candidates`.
    """
    shown = _shown(photo)
    columns = 1 if len(faces) == 1 else 2
    width, gap, crop = 1040, 24, 168
    labels = max(len(face.probabilities) for face in faces)
    cell_width = (width - gap * (columns + 1)) // columns
    cell_height = 52 + max(crop, 30 * labels) + gap
    shown = ImageOps.contain(shown, (width - 2 * gap, SHOWN_SIDE))
    below = shown.height + 2 * gap
    image = Image.new("RGB", (width, below + cell_height * math.ceil(len(faces) / columns) + 40), "white")
    left = (width - shown.width) // 2
    image.paste(shown, (left, gap))
    pen, scale = ImageDraw.Draw(image), shown.width / photo.width
    text, bold = ImageFont.load_default(20), ImageFont.load_default(28)
    for number, face in enumerate(faces, 1):
        x, y, w, h = (scale * value for value in face.box)
        for beyond, colour in ((2, "#111"), (0, "#fff")):
            corners = (left + x - beyond, gap + y - beyond, left + x + w + beyond, gap + y + h + beyond)
            pen.rectangle(corners, outline=colour, width=2 + 2 * beyond)
        _numbered(pen, (max(left, left + x), max(gap, gap + y - 34)), number, bold)

        row, column = divmod(number - 1, columns)
        x, y = gap + column * (cell_width + gap), below + row * cell_height
        names = candidates(face, threshold)
        end = _numbered(pen, (x, y), number, bold)
        title = " or ".join(names) + ("" if len(names) == 1 else "? not clear")
        pen.text((end + 12, y), title, "#111", bold)
        image.paste(Image.fromarray(face.crop).resize((crop, crop), Image.Resampling.NEAREST), (x, y + 52))
        for index, (name, p) in enumerate(face.probabilities.items()):
            start, top = x + crop + 16, y + 52 + 30 * index
            track = cell_width - crop - 16 - 110 - 64
            pen.text((start, top), name if len(name) < 11 else f"{name[:10]}.", "#111", text)
            pen.rectangle((start + 110, top + 4, start + 110 + track, top + 20), "#e5e7eb")
            colour = COLOURS.get(name, OTHER_COLOUR)
            pen.rectangle((start + 110, top + 4, start + 110 + max(2, round(p * track)), top + 20), colour)
            pen.text((x + cell_width, top), unescape(percent(p)), "#111", text, anchor="ra")
    pen.text(
        (gap, image.height - 40), "An expression is not a feeling: how people would probably label it.", "#475569", text
    )
    return image


def _numbered(
    pen: ImageDraw.ImageDraw, corner: tuple[float, float], number: int, font: ImageFont.FreeTypeFont
) -> float:
    """Draw a face's number; returns the x where it ends."""
    x, y = corner
    end = x + pen.textlength(str(number), font) + 16
    pen.rectangle((x, y, end, y + 34), "#111", "#fff", 2)
    pen.text(((x + end) / 2, y + 17), str(number), "#fff", font, anchor="mm")
    return end


def timeline(samples: Sequence[Sample], labels: Sequence[str], seconds: float | None = None) -> str:
    """A face over time as HTML: a line for every probability, and in words what it was on average.

    Args:
        samples: from the oldest to the newest.
        labels: the classes, in the network's order.
        seconds: length of the clip, from whose beginning times count. None stands for a camera: the right edge is the
            time of the newest sample, and `TIMELINE_SECONDS` are shown.
    """
    lines, averages = "", dict.fromkeys(labels, 0.0)
    width = TIMELINE_SECONDS if seconds is None else max(seconds, SHORTEST_SECONDS)
    left = samples[-1].time - width if samples and seconds is None else 0
    for name in labels:
        path, before = "", None
        for sample in samples:
            x = WIDTH * (sample.time - left) / width
            y = 100 * (1 - sample.probabilities[name])
            # Another face, or a time without any, interrupts the line.
            apart = before is None or before.track != sample.track or sample.time - before.time > GAP_SECONDS
            path += f"{'M' if apart else 'L'}{x:.1f} {y:.1f}" + ("h.1" if apart else "")
            averages[name] += sample.probabilities[name] / len(samples)
            before = sample
        lines += f'<path d="{path}" stroke="{COLOURS.get(name, OTHER_COLOUR)}"><title>{escape(name)}</title></path>'
    words = "No face yet"
    if samples:
        first, second = sorted(averages, key=averages.__getitem__, reverse=True)[:2]
        from_to = samples[0].time, samples[-1].time
        words = (
            f"In the last {max(1, round(from_to[1] - from_to[0]))} seconds"
            if seconds is None
            else f"From {from_to[0]:.1f} to {from_to[1]:.1f} seconds"
        )
        words += (
            f": on average {escape(first)} {percent(averages[first])}, {escape(second)} {percent(averages[second])}"
        )
    edges = (f"{TIMELINE_SECONDS} s ago", "now") if seconds is None else ("0 s", f"{seconds:.1f} s")
    key = "".join(
        f'<li><span class="bar" style="background:{COLOURS.get(name, OTHER_COLOUR)}"></span>{escape(name)}</li>'
        for name in labels
    )
    return (
        f'<figure class="timeline"><figcaption>{words}</figcaption><svg role="img" aria-label="{words}" '
        f'viewBox="0 0 {WIDTH} 100" preserveAspectRatio="none">{lines}</svg>'
        f"<p><span>{edges[0]}</span><span>{edges[1]}</span></p><ul>{key}</ul></figure>"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML; heads and cells are HTML, too."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="rows"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def csv_link(name: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A link, as HTML, that saves a table as a CSV file called `name`; nothing is kept on the server."""
    stream = io.StringIO()
    csv.writer(stream).writerows([heads, *rows])
    url = f"data:text/csv;base64,{base64.b64encode(stream.getvalue().encode()).decode()}"
    return f'<a class="download" download="{name}" href="{url}">Download as CSV</a>'


def data_url(image: Image.Image, format: str) -> str:
    """The picture, encoded as "PNG" or "JPEG", as an address that needs no file."""
    stream = io.BytesIO()
    image.save(stream, format)
    return f"data:image/{format.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
