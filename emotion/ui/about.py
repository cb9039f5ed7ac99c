"""The tab about the model: the network's model card, as the Hub would show it, and what happens to a photo."""

import io
import re
from collections.abc import Callable, Mapping
from functools import cache
from html import escape
from typing import Any, Final

import gradio as gr
import numpy as np
from gradio.components import Component
from PIL import Image

from emotion.checkpoint import METADATA, find, find_metadata
from emotion.evaluate import plot_confusion, plot_reliability
from emotion.faces import open_image
from emotion.hub import PICTURES, model_card
from emotion.networks import Network
from emotion.ui.inputs import FORGOTTEN_MINUTES
from emotion.ui.look import data_url

LEFT_OUT: Final = "Use it"
LAST: Final = ("Data and labels", "Training procedure")
"""Sections of the card that visitors do not need, and those that they want to know last."""
PRIVACY: Final = (
    "Privacy\n\nA photo, or what a camera sees, is read by the machine that runs this page and by no other, which "
    f"deletes it within {FORGOTTEN_MINUTES} minutes. Nothing is logged or counted, nothing is kept for training, and a "
    "link to this page never holds any of it."
)
PLOTS: Final[dict[str, Callable[..., None]]] = {"confusion.png": plot_confusion, "reliability.png": plot_reliability}
"""What draws a picture that a checkpoint lacks, from its `metrics.json`."""
SCROLLING: Final = '<div class="scrolling" tabindex="0">'
FOREIGN: Final = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What reading metadata raises that another program has written."""


def about_tab(networks: Mapping[str, Network], network: gr.Radio, chosen: gr.State) -> dict[str, Component]:
    """Fill the tab about the model.

    Arguments and return value are those of every tab, see `emotion.ui`.
    """

    @cache
    def show(name: str) -> str:
        try:
            return _card(name, networks[name])
        except FileNotFoundError as error:  # what no answer from the Hub means
            raise gr.Error("What is known of this network cannot be had now; try again later.") from error

    card = gr.Markdown(elem_id="about-card")
    # The tab itself is the card's parent.
    gr.on(
        [card.parent.select, chosen.change],
        show,
        network,
        card,
        # A network that a link brings while the tab is opened is the next.
        trigger_mode="always_last",
        api_visibility="private",
        show_progress="hidden",
    )
    return {}


def _card(name: str, network: Network) -> str:
    """The network's model card for visitors, as Markdown: figures early, and the pictures in it."""
    metadata = {kind: _metadata(network, kind) for kind in METADATA}
    pictures = {file: picture for file in PICTURES if (picture := _picture(network, file))}
    card = model_card(network.predictor.model, f"USER/{name}", pictures=pictures, **metadata).text

    def embed(match: re.Match[str]) -> str:
        title, file = match.groups()
        if file not in pictures:
            return title
        return f'<img src="{data_url(pictures[file], "PNG")}" alt="{escape(_in_words(file, metadata) or title)}">'

    # Class names and settings may be a stranger's: they bring along no markup and no pictures from elsewhere.
    card = re.sub(r"!\[(.*?)\](?:\((.*?)\))?", embed, card.replace("<", "&lt;"))
    # What is too wide for a phone scrolls by itself, also by keyboard.
    card = re.sub(r"(^\|.*\n?)+", f"{SCROLLING}\n\n\\g<0>\n\n</div>\n", card, flags=re.MULTILINE)
    # The page has a title already.
    sections = re.split(r"^#{1,2} ", card, flags=re.MULTILINE)[1:]
    sections = [section for section in sections if not section.startswith(LEFT_OUT)]
    sections.insert(-1, PRIVACY)
    return "\n\n".join(f"## {section}" for section in sorted(sections, key=lambda section: section.startswith(LAST)))


def _metadata(network: Network, kind: str) -> Any:
    try:
        return find_metadata(network.checkpoint, kind)
    except ValueError:
        return None


def _picture(network: Network, file: str) -> Image.Image | None:
    """A picture of the checkpoint, else what its metrics give, else nothing."""
    try:
        if path := find(network.checkpoint, file):
            return open_image(path)
    except ValueError:
        pass
    stream = io.BytesIO()
    try:
        PLOTS[file](network.metrics["plain"], stream)
    except FOREIGN:
        return None
    return open_image(stream.getvalue())


def _in_words(file: str, metadata: Mapping[str, Any]) -> str | None:
    """The essence of one of `PICTURES` for people who don't see it, if the metadata give it."""
    try:
        return WORDS[file](metadata)
    except FOREIGN:
        return None


def _curves_in_words(metadata: Mapping[str, Any]) -> str:
    first, last = (metadata["history"][index]["validation_accuracy"] for index in (0, -1))
    return f"Loss and accuracy by epoch: accuracy on validation faces goes from {first:.0%} to {last:.0%}"


def _confusion_in_words(metadata: Mapping[str, Any]) -> str:
    plain = metadata["metrics"]["plain"]
    counts, labels = np.array(plain["confusion"], dtype=float), plain["labels"]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = shares.diagonal().copy()
    best, worst = right.argmax(), right.argmin()
    np.fill_diagonal(shares, 0)
    true, taken = np.unravel_index(shares.argmax(), shares.shape)
    return (
        f"Confusion matrix: {labels[best]} is recognised best ({right[best]:.0%} of its faces), {labels[worst]} worst "
        f"({right[worst]:.0%}); the most frequent mistake is to take {labels[true]} for {labels[taken]} "
        f"({shares[true, taken]:.0%})"
    )


def _reliability_in_words(metadata: Mapping[str, Any]) -> str:
    plain = metadata["metrics"]["plain"]
    bins = plain["reliability"]
    shown = (bins[index] for index in sorted({0, len(bins) // 2, len(bins) - 1}))
    pairs = ", ".join(f"{b['accuracy']:.0%} at a confidence of {b['confidence']:.0%}" for b in shown)
    return f"Share of right answers by confidence: {pairs}; on average the two differ by {plain['ece']:.1%}"


WORDS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "curves.png": _curves_in_words,
    "confusion.png": _confusion_in_words,
    "reliability.png": _reliability_in_words,
}
