"""The page, one module per tab. The only package that imports gradio.

`TABS` lists the tabs. Each is a function `(networks, network) -> linked`, called inside its own `gr.Tab`:

- `networks`: `Network` by name, see `emotion.ui.networks`; all are loaded.
- `network`: the selector above the tabs. Its value is the name of the chosen network: give it to an event as an input
  and take `networks[name]`. Gradio refuses a name that is not offered before the function runs. With one network it
  is hidden and works the same.
- `linked`: the components that a link restores, by their name in the query of the address.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

# Before gradio is there, so that no part of it can have asked earlier.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr
from gradio.components import Component

from emotion.ui.inputs import FORGOTTEN_MINUTES, KEEP_SECONDS, SWEEP_SECONDS
from emotion.ui.look import CSS, PIXELS
from emotion.ui.networks import Network, load_networks
from emotion.ui.photo import photo_tab

__all__ = ["LAUNCH_OPTIONS", "build_page", "load_networks"]

TITLE: Final = "What does this face express?"
TABS: Final[dict[str, tuple[str, Callable[[Mapping[str, Network], gr.Radio], dict[str, Component]]]]] = {
    "photo": ("Photo", photo_tab),
}
"""Title and content of every tab, by its name in the address; the first one is open at the start."""

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


def build_page(networks: Mapping[str, Network]) -> gr.Blocks:
    """Build the page and its one public endpoint, `/predict`; launch it with `LAUNCH_OPTIONS`.

    Args:
        networks: what the page offers, by name; with two or more, a selector above the tabs switches between them.
    """
    with gr.Blocks(title=TITLE, delete_cache=(SWEEP_SECONDS, KEEP_SECONDS)) as page:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Give a photo with one or more faces. A small network, which sees each face as "
            f"{PIXELS} grey pixels, says which expression it shows.</p>",
            elem_id="intro",
        )
        network = gr.Radio(
            list(networks), value=next(iter(networks)), label="Network", visible=len(networks) > 1, elem_id="network"
        )
        with gr.Tabs(elem_id="tabs"):
            for name, (title, fill) in TABS.items():
                with gr.Tab(title, id=name):
                    fill(networks, network)
        gr.HTML(
            "<p><strong>An expression is not a feeling.</strong> The percentages say how people would probably label "
            "the face in the picture. They say nothing about what the person feels, and they are often wrong: "
            "don't judge anyone by them.</p>"
            "<p><strong>Your photo stays yours.</strong> Only the machine that runs this page reads it, and deletes "
            f"it within {FORGOTTEN_MINUTES} minutes. Nothing is logged.</p>",
            elem_id="notes",
        )
    return page
