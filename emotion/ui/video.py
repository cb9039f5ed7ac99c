"""The Video tab: a short clip as a timeline for every face, with the moments at which the expression changes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import gradio as gr
from gradio.components import Component
from PIL import Image

from emotion.follow import FaceFollower, Sample
from emotion.predict import Prediction
from emotion.ui.inputs import CLIPS, MAX_MEGABYTES, clip_input, reason
from emotion.ui.look import SCROLL_JS, announced, candidates, csv_link, data_url, percent, timeline
from emotion.ui.networks import Network
from emotion.video import MAX_SECONDS, RATE, Clip

HINT: Final = "<p>Give a short clip: what the faces in it show over time appears here.</p>"
LIMITS: Final = (
    f"<p>Up to {MAX_SECONDS} seconds and {MAX_MEGABYTES} MB, as MP4, MOV, WebM or MKV. {RATE} pictures a second are "
    "looked at; sound is ignored.</p>"
)
LIMITS_JS: Final = """
// For trimming, which the page does without, gradio would have every visitor load 31 MB.
const load = window.fetch;
window.fetch = (address, ...rest) =>
  String(address).includes("/static/ffmpeg/") ? Promise.reject(new TypeError("not loaded")) : load(address, ...rest);
"""
MOMENTS: Final = 8
"""Key moments that are shown of a face; of more, the strongest."""
BRIEF: Final = RATE
"""A face in fewer pictures, less than a second, is not shown unless there is none that stays longer."""


@dataclass
class Track:
    """One face of a clip: numbers, and the pictures of its key moments.

    Attributes:
        samples: smoothed probabilities of every picture that has the face.
        moments: time and face each time that the clear expression changes, at its strongest until the next change;
            where none is ever clear, the least unclear one.
    """

    samples: list[Sample] = field(default_factory=list)
    moments: list[tuple[float, Prediction]] = field(default_factory=list)

    def add(self, time: float, number: int, face: Prediction, threshold: float) -> None:
        """Take in the next picture.

        Args:
            time: in seconds, later than the one before.
            number: the face's.
            face: its smoothed probabilities, and its crop.
            threshold: that of `emotion.ui.look.candidates`.
        """
        self.samples.append(Sample(time, number, face.probabilities))
        last = self.moments[-1][1] if self.moments else None
        if last is None or (face.emotion != last.emotion and min(face.confidence, last.confidence) >= threshold):
            self.moments.append((time, face))
        elif face.confidence > last.confidence:
            self.moments[-1] = time, face

    @property
    def key_moments(self) -> list[tuple[float, Prediction]]:
        """The strongest of `moments`, in the order of time."""
        strongest = sorted(self.moments, key=lambda moment: moment[1].confidence)[-MOMENTS:]
        return sorted(strongest, key=itemgetter(0))


def video_tab(networks: Mapping[str, Network], network: gr.Radio) -> dict[str, Component]:
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
    shown = gr.State()

    def show(
        name: str,
        path: str | None,
        before: tuple[str, str | None] | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        # An example that is no longer chosen hands the clip over once more.
        if before == (name, path):
            return gr.skip(), gr.skip(), before
        return *_show(networks[name], path, progress), (name, path)

    def video(video: str | None) -> dict[str, Any]:
        """Find and follow every face of a clip and give the probability of every expression, five times a second.

        Returns {"video": name, "faces": [{"time", "face", "box": [x, y, w, h], "score", "emotion", "confidence",
        "probabilities"}], "error": null or text}: time in seconds from the beginning, the number by which the face is
        followed, then what /predict gives for this picture of the clip. Of a longer clip, only the first 60 seconds
        are looked at.
        """
        item: dict[str, Any] = {"video": video and Path(video).name, "faces": [], "error": None}
        if video is None:
            return item | {"error": "No clip was given; upload one."}
        try:
            item["faces"], _ = _watch(next(iter(networks.values())), Clip(video))
        except (ValueError, OSError) as error:
            item["error"] = reason(error, video)
        return item

    gr.on(
        [clip.change, network.change],
        show,
        [network, clip, shown],
        [summary, result, shown],
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
        rows, tracks = _watch(network, progress.tqdm(clip, desc="Looking at your clip", unit="pictures"))
    except (ValueError, OSError) as error:
        return f'<p class="error">{escape(reason(error, path))}</p>', ""
    span = f"the first {MAX_SECONDS} seconds of the clip" if clip.cut else f"{clip.seconds:.1f} seconds"
    if not tracks:
        return f"<p>No face was found in {span}.</p>", ""
    longest = max(len(track.samples) for track in tracks.values())
    faces = {number: track for number, track in sorted(tracks.items()) if len(track.samples) >= min(BRIEF, longest)}
    words = {number: _words(track.key_moments, network.threshold) for number, track in faces.items()}
    if len(words) == 1:
        said = f"One face was found in {span}: {words[min(words)]}."
    else:
        said = f"{len(words)} faces were found in {span}. "
        said += " ".join(f"Face {number}: {text}." for number, text in words.items())
    labels = network.predictor.model.labels
    sections = "".join(
        f'<section class="track"><h2><span class="number">{number}</span><span>{words[number]}</span></h2>'
        f"{_moments(number, track.key_moments, network.threshold)}"
        f"{timeline(track.samples, labels, clip.seconds)}</section>"
        for number, track in faces.items()
    )
    lines = [
        [row["time"], row["face"], *row["box"], row["score"], row["emotion"], *row["probabilities"].values()]
        for row in rows
    ]
    link = csv_link("clip.csv", ["time", "face", "x", "y", "width", "height", "score", "emotion", *labels], lines)
    more = len(tracks) - len(faces)
    brief = f" So are faces that were seen for less than a second: {more}." if more else ""
    return f"<p>{said}</p>", (
        f"{sections}<p>The lines are smoothed over half a second. What the network says about each picture, without "
        f"that, is in the table.{brief} {link}</p>"
    )


def _watch(
    network: Network, clip: Iterable[tuple[float, Image.Image]]
) -> tuple[list[dict[str, Any]], dict[int, Track]]:
    """The faces of each picture as `/video` gives them, and every face over time by its number."""
    follower, rows, tracks = FaceFollower(), [], {}
    for time, picture in clip:
        found = network.predictor.predict(picture)
        for number, face in sorted(zip(follower.update(found, time), found, strict=True), key=itemgetter(0)):
            rows.append({"time": time, "face": number, **face.to_json()})
            smoothed = replace(follower.faces[number], crop=face.crop)
            tracks.setdefault(number, Track()).add(time, number, smoothed, network.threshold)
    return rows, tracks


def _words(moments: Sequence[tuple[float, Prediction]], threshold: float) -> str:
    """How the expression changes, as part of a sentence in HTML."""
    names = [candidates(face, threshold) for _, face in moments]
    if len(names[0]) > 1:
        return f"no class is clear, {' or '.join(map(escape, names[0]))}"
    return ", then ".join(escape(name) for [name] in names)


def _moments(number: int, moments: Sequence[tuple[float, Prediction]], threshold: float) -> str:
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
