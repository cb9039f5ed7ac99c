"""The Live tab: the camera as a stream, with boxes and bars that follow the faces, and the last half minute."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

import gradio as gr
from gradio.components import Component
from PIL import Image

from emotion.follow import FaceFollower
from emotion.networks import Network
from emotion.ui.inputs import camera_input
from emotion.ui.look import announced, boxes, candidates, card, timeline

FRAME_SECONDS: Final = 0.1
"""A browser sends a frame this often; the server answers the newest one when it is free, and drops the others."""
VIEWERS: Final = 4
"""Cameras that are answered at the same time."""
TURN_SECONDS: Final = 30
"""After this long a camera has to queue again, so that further ones get their turn."""
SPOKEN_SECONDS: Final = 2
"""Least time between two sentences, so that a screen reader can keep up."""
HINT: Final = "<p>Start the camera: the result appears here.</p>"
HELP: Final = (
    "<p>Click on the camera, allow your browser to use it, then press Record. Frames go to the machine that runs this "
    'page, which keeps none of them.</p><p class="error" role="alert"></p>'
)
HELP_JS: Final = """
const problem = element.querySelector(".error");
const say = (text) => { problem.textContent = text; };
const denied = "The camera is blocked for this page. Allow it in your browser, at the left end of the address bar or " +
  "in the settings for this site, then reload the page.";
const missing = "No camera was found. Connect one, then reload the page; or give a picture on the Photo tab.";
const reasons = {
  NotAllowedError: denied,
  NotFoundError: missing,
  OverconstrainedError: missing,
  NotReadableError: "The camera does not answer. Close other programs that use it, then reload the page.",
};
const devices = navigator.mediaDevices;
if (!devices?.getUserMedia) {
  say("Browsers give a camera only to pages with an https address or on this machine; open the page there.");
} else {
  devices.enumerateDevices().then((all) => all.some(({ kind }) => kind === "videoinput") || say(missing));
  navigator.permissions?.query({ name: "camera" }).then((camera) => camera.state === "denied" && say(denied), () => {});
}
// Gradio asks for the camera and says nothing when it gets none.
addEventListener("unhandledrejection", ({ reason }) => reasons[reason?.name] && say(reasons[reason.name]));
document.addEventListener("playing", () => say(""), true);

// Gradio lets a stopped camera run on, also when another tab is opened.
const find = (selector) => document.querySelector("#live-camera " + selector);
const stopped = () => find("[title='start recording']");
document.addEventListener("click", async ({ target }) => {
  if (!target.closest("#live-camera .capture-button")) return;
  const video = find("video");
  const [track] = video.srcObject.getTracks();
  if (!stopped()) {
    track.stop();
  } else if (track.readyState === "ended") {
    video.srcObject = await devices.getUserMedia({ video: track.getConstraints() });
    video.play();
  }
}, true);
new IntersectionObserver(() => {
  if (!element.offsetParent && find(".capture-button") && !stopped()) find(".capture-button").click();
}).observe(element);
"""


@dataclass
class Session:
    """What one visitor's stream remembers: numbers and words, no picture.

    Attributes:
        network: name of the network that answers.
        follower: the faces so far.
        said: the sentence on the page.
        said_at: when it was said, in seconds.
    """

    network: str
    follower: FaceFollower = field(default_factory=FaceFollower)
    said: str = ""
    said_at: float = float("-inf")


def live_tab(networks: Mapping[str, Network], network: gr.Radio, chosen: gr.State) -> dict[str, Component]:
    """Fill the Live tab.

    Arguments and return value are those of every tab, see `emotion.ui`.
    """
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            with gr.Column(elem_id="live-stage"):
                camera = camera_input("live-camera")
                overlay = gr.HTML(elem_id="live-boxes")
            gr.HTML(HELP, js_on_load=HELP_JS, elem_id="live-help")
        with gr.Column(scale=3, min_width=300):
            summary = announced(HINT, "live-summary", "summary")
            result = gr.HTML(elem_id="live-result")
    session = gr.State()

    def look(frame: Image.Image | None, name: str, session: Session | None) -> tuple[Any, ...]:
        if frame is None:
            return session, gr.skip(), gr.skip(), gr.skip()
        if session is None or session.network != name:
            # Another network may have other classes.
            session = Session(name)
        return session, *_look(networks[name], session, frame, time.monotonic())

    camera.stream(
        look,
        [camera, network, session],
        [session, overlay, summary, result],
        stream_every=FRAME_SECONDS,
        concurrency_limit=VIEWERS,
        time_limit=TURN_SECONDS,
        show_progress="hidden",
        api_visibility="private",
    )
    return {}


def _look(network: Network, session: Session, frame: Image.Image, now: float) -> tuple[str, str, str]:
    """Boxes, sentence and result for a frame that has come in at `now`, in seconds, as HTML."""
    follower = session.follower
    follower.look(frame, network.predictor, now)
    faces = dict(sorted(follower.faces.items()))
    overlay = f'<div class="overlay" style="aspect-ratio:{frame.width}/{frame.height}">{boxes(faces, frame.size)}</div>'
    if now - session.said_at >= SPOKEN_SECONDS:
        names = [" or ".join(map(escape, candidates(face, network.threshold))) for face in faces.values()]
        said = "One face: " if len(names) == 1 else f"{len(names)} faces: " if names else "No face is seen"
        said = f"<p>{said}{', '.join(names)}.</p>"
        if said != session.said:
            session.said, session.said_at = said, now
    cards = "".join(card(number, face, network.threshold) for number, face in faces.items())
    lines = timeline(follower.timeline, network.predictor.model.labels)
    rate = f'<p class="rate">{follower.rate:.1f} frames per second</p>'
    return overlay, session.said, f'{rate}<div class="faces">{cards}</div>{lines}'
