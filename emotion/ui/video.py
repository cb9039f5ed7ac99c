"""The Video tab: a short clip as a timeline for every face, with the moments at which the expression changes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import gradio as gr
import numpy as np
from gradio.components import Component
from PIL import Image

from emotion.follow import FaceFollower, Sample
from emotion.networks import Network
from emotion.predict import Prediction
from emotion.ui.guard import FILE_MEGABYTES
from emotion.ui.inputs import CLIPS, clip_input, reason
from emotion.ui.look import SCROLL_JS, announced, candidates, csv_link, data_url, percent, timeline
from emotion.video import MAX_SECONDS, RATE, Clip

HINT: Final = "<p>What the faces in the clip show over time appears here.</p>"
LIMITS: Final = (
    f"<p>Up to {MAX_SECONDS} seconds and {FILE_MEGABYTES} MB, as MP4, MOV, WebM or MKV. {RATE} pictures a second are "
    "looked at; sound is ignored.</p>"
)
LIMITS_JS: Final = """
// Browsers cannot show every clip that can be read: that is no error.
document.addEventListener("error", (event) => {
  if (event.target.closest?.("#video-input")) event.stopImmediatePropagation();
}, true);
// For trimming, which the page does without, gradio would have every visitor load 31 MB.
const load = window.fetch;
window.fetch = (address, ...rest) =>
  String(address).includes("/static/ffmpeg/") ? new Promise(() => {}) : load(address, ...rest);
"""
SMOOTHING_SECONDS: Final = 0.25
"""Standard deviation of the Gaussian that smooths the probabilities, before and after alike: nothing is delayed."""
MOMENTS: Final = 8
"""Key moments that are shown of a face; of more, the strongest."""
BRIEF: Final = RATE
"""A face in fewer pictures, less than a second, is not shown unless there is none that stays longer."""


class Moment(NamedTuple):
    """A face in one picture of the clip.

    Attributes:
        time: seconds from the beginning of the clip.
        face: the face; its box in pixels of the picture.
    """

    time: float
    face: Prediction


def video_tab(networks: Mapping[str, Network], network: gr.Radio, chosen: gr.State) -> dict[str, Component]:
    """Fill the Video tab and add its endpoint, `/video`.

    Arguments and return value are those of every tab, see `emotion.ui`.
    """
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            example = gr.Radio(
                list(CLIPS),
                label="Or an example",
                info="Means of many faces, which pass into each other.",
                visible=bool(CLIPS),
                render=False,
                elem_id="video-example",
            )
            clip = clip_input("video-input", example)
            gr.HTML(LIMITS, js_on_load=LIMITS_JS, elem_id="video-limits")
            example.render()
        with gr.Column(scale=3, min_width=300):
            summary = announced(HINT, "video-summary", "summary")
            result = gr.HTML(elem_id="video-result")

    def show(name: str, path: str | None, progress: gr.Progress = gr.Progress()) -> tuple[str, str]:  # noqa: B008
        return _show(networks[name], path, progress)

    def video(video: str | None) -> dict[str, Any]:
        """Find and follow every face of a clip and give the probability of every expression, five times a second.

        Returns {"video": name, "faces": [{"time", "face", "box": [x, y, w, h], "score", "emotion", "confidence",
        "probabilities"}], "error": null or text}: time in seconds from the beginning, the number by which the face is
        followed, then what /predict gives for this picture of the clip. Of a longer clip, only the first 60 seconds
        are looked at.

        Args:
            video: The clip, uploaded or, for a tool, as a data URL.
        """
        item: dict[str, Any] = {"video": video and Path(video).name, "faces": [], "error": None}
        if video is None:
            return item | {"error": "No clip was given; upload one."}
        try:
            tracks = _follow(next(iter(networks.values())), Clip(video))
        except (ValueError, OSError) as error:
            return item | {"error": reason(error, video)}
        return item | {"faces": _rows(tracks)}

    gr.on(
        [clip.change, chosen.change],
        show,
        [network, clip],
        [summary, result],
        # A clip that comes while another is looked at is the next, in place of all before it.
        trigger_mode="always_last",
        api_visibility="private",
        show_progress_on=result,
    ).then(None, clip, None, js=SCROLL_JS.format(id="video-summary"), api_visibility="private")
    gr.on([], video, clip, gr.JSON(visible=False), api_name="video")
    return {"example": example}


def _show(network: Network, path: str | None, progress: gr.Progress) -> tuple[str, str]:
    """Summary and result for the clip at `path`, as HTML."""
    if path is None:
        return HINT, ""
    try:
        clip = Clip(path)
        tracks = _follow(network, progress.tqdm(clip, desc="Looking at your clip", unit="pictures"))
    except (ValueError, OSError) as error:
        return f'<p class="error">{escape(reason(error, path))}</p>', ""
    said = (
        f"In the first {MAX_SECONDS} seconds of this clip"
        if clip.cut
        else f"In this clip of {clip.seconds:.1f} seconds"
    )
    if not tracks:
        return f"<p>{said}, no face was found.</p>", ""
    longest = max(map(len, tracks.values()))
    faces = {number: smooth(track) for number, track in sorted(tracks.items()) if len(track) >= min(BRIEF, longest)}
    moments = {number: key_moments(track, network.threshold) for number, track in faces.items()}
    words = {number: _words(shown, network.threshold) for number, shown in moments.items()}
    if len(words) == 1:
        said += f", one face was found: {words[min(words)]}."
    else:
        said += f", {len(words)} faces were found. "
        said += " ".join(f"Face {number}: {text}." for number, text in words.items())
    labels = network.predictor.model.labels
    sections = ""
    for number, track in faces.items():
        samples = [Sample(time, number, face.probabilities) for time, face in track]
        sections += (
            f'<section class="followed"><h2><span class="number">{number}</span><span>{words[number]}</span></h2>'
            f"{_moments(number, moments[number], network.threshold)}{timeline(samples, labels, clip.seconds)}</section>"
        )
    lines = [
        [row["time"], row["face"], *row["box"], row["score"], row["emotion"], *row["probabilities"].values()]
        for row in _rows(tracks)
    ]
    heads = ["time", "face", "x", "y", "width", "height", "score", "emotion", *labels]
    link = csv_link("clip.csv", heads, lines)
    brief = (
        f", and of faces that were seen for less than a second: {more}" if (more := len(tracks) - len(faces)) else ""
    )
    return f"<p>{said}</p>", (
        f"{sections}<p>The lines are smoothed over half a second. The table has what the network says of every single "
        f"picture{brief}. {link}</p>"
    )


def _follow(network: Network, clip: Iterable[tuple[float, Image.Image]]) -> dict[int, list[Moment]]:
    """Every face of a clip over time, by a number of its own."""
    follower = FaceFollower()
    tracks: dict[int, list[Moment]] = {}
    for time, picture in clip:
        found = network.predictor.predict(picture)
        for number, face in zip(follower.update(found, time), found, strict=True):
            tracks.setdefault(follower.tracks[number], []).append(Moment(time, face))
    return tracks


def _rows(tracks: Mapping[int, Sequence[Moment]]) -> list[dict[str, Any]]:
    """The "faces" of `/video`."""
    rows = [{"time": time, "face": n, **face.to_json()} for n, track in tracks.items() for time, face in track]
    return sorted(rows, key=itemgetter("time", "face"))


def smooth(track: Sequence[Moment]) -> list[Moment]:
    """The same moments with the probabilities of each averaged with those around it, weighted by their distance."""
    times = np.array([time for time, _ in track])
    probabilities = np.array([list(face.probabilities.values()) for _, face in track])
    weights = np.exp(-0.5 * np.square((times[:, None] - times) / SMOOTHING_SECONDS))
    rows = weights @ probabilities / weights.sum(axis=1, keepdims=True)
    smoothed = []
    for (time, face), row in zip(track, rows.tolist(), strict=True):
        shares = dict(zip(face.probabilities, row, strict=True))
        emotion = max(shares, key=shares.__getitem__)
        smoothed.append(Moment(time, replace(face, emotion=emotion, confidence=shares[emotion], probabilities=shares)))
    return smoothed


def key_moments(track: Sequence[Moment], threshold: float) -> list[Moment]:
    """The strongest moment of each stretch of time in which the clear expression is the same, in the order of time.

    Where none is ever clear, the least unclear moment; of more than `MOMENTS`, the strongest of them.

    Args:
        track: one face over time, at least one moment.
        threshold: that of `emotion.ui.look.candidates`.
    """
    clear = [moment for moment in track if moment.face.confidence >= threshold]
    stretches = groupby(clear, key=lambda moment: moment.face.emotion)
    moments = [max(stretch, key=_confidence) for _, stretch in stretches] or [max(track, key=_confidence)]
    return sorted(sorted(moments, key=_confidence)[-MOMENTS:], key=itemgetter(0))


def _confidence(moment: Moment) -> float:
    return moment.face.confidence


def _words(moments: Sequence[Moment], threshold: float) -> str:
    """How the expression changes, as part of a sentence in HTML."""
    names = [candidates(face, threshold) for _, face in moments]
    if len(names[0]) > 1:
        return f"no class is clear, {' or '.join(map(escape, names[0]))}"
    return ", then ".join(escape(name) for [name] in names)


def _moments(number: int, moments: Sequence[Moment], threshold: float) -> str:
    """The pictures of a face's key moments as HTML."""
    items = ""
    for time, face in moments:
        answers = " or ".join(
            f"{escape(name)} {percent(face.probabilities[name])}" for name in candidates(face, threshold)
        )
        items += (
            f'<li><figure><img src="{data_url(Image.fromarray(face.crop), "PNG")}" '
            f'alt="Face {number} after {time:.1f} seconds, as the network saw it">'
            f"<figcaption><b>{time:.1f} s</b><br>{answers}</figcaption></figure></li>"
        )
    return f'<ol class="moments">{items}</ol>'
