"""The page, one module per tab. The only package that imports gradio.

`TABS` lists the tabs. Each is a function `(networks, network, chosen) -> linked`, called inside its own `gr.Tab`:

- `networks`: `Network` by name, see `emotion.networks`; all are loaded.
- `network`: the selector above the tabs. Its value is the name of the chosen network: give it to an event as an input
  and take `networks[name]`. Gradio refuses a name that is not offered before the function runs. With one network it
  is hidden and works the same.
- `chosen`: a state that follows the selector. Listen to its change, not to the selector's.
- `linked`: the components that a link restores, by their name in the query of the address: sliders, and choices
  (radio groups, drop-down lists) of text. While the tab is open, its values stand in the address; what a visitor gave
  never does.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

# Before gradio is there, so that no part of it can have asked earlier.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# Nobody's requests are counted, which would also take a data frame over the last 10,000 of them after each one.
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"
# A folder of its own, since what is old in it is deleted, and of each user's own, where users share one for such files.
os.environ.setdefault(
    "GRADIO_TEMP_DIR", os.path.join(tempfile.gettempdir(), f"emotion48-{getattr(os, 'getuid', str)()}")
)
import gradio as gr
import gradio.mcp
from gradio.components import Component
from gradio.state_holder import SessionState
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from emotion.networks import Network
from emotion.ui.about import about_tab
from emotion.ui.augmentation import augmentation_tab
from emotion.ui.guard import FILE_MEGABYTES, PER_MINUTE, QUEUE, Guard
from emotion.ui.inputs import EXAMPLE_CSS, FORGOTTEN_MINUTES, KEEP_SECONDS, SWEEP_SECONDS
from emotion.ui.live import live_tab
from emotion.ui.look import CSS, PIXELS
from emotion.ui.photo import photo_tab
from emotion.ui.tools import Tools
from emotion.ui.video import video_tab

__all__ = ["build_page", "launch_options"]

TITLE: Final = "What does this face express?"
TABS: Final[dict[str, tuple[str, Callable[[Mapping[str, Network], gr.Radio, gr.State], dict[str, Component]]]]] = {
    "photo": ("Photo", photo_tab),
    "live": ("Live", live_tab),
    "video": ("Video", video_tab),
    "augmentation": ("Augmentation", augmentation_tab),
    "about": ("The model", about_tab),
}
"""Title and content of every tab, by its name in the address; the first one is open at the start."""

KEEP_ADDRESS_JS: Final = """(...values) => {
  const opening = %s, tab = %s, names = %s, all = %s;
  if (opening) window.openTab = tab;
  else if (tab !== window.openTab) return;
  window.writeAddress = () => {
    const query = new URLSearchParams(location.search);
    for (const name of all) query.delete(name);
    query.set("tab", tab);
    names.forEach((name, index) => values[index] == null || query.set(name, values[index]));
    history.replaceState(history.state, "", "?" + query + location.hash);
    // The page around a Space shows the same query; no other page gets this message.
    if (window.parent !== window)
      window.parent.postMessage({ queryString: String(query) }, "https://huggingface.co");
  };
  // What the address says is restored first, however long that takes.
  if (!window.isRestored) return;
  // A slider that is dragged sends many events, and browsers allow only so many addresses a second.
  clearTimeout(window.addressTimer);
  window.addressTimer = setTimeout(window.writeAddress, 200);
}"""
"""Writes the values of a tab's components into the address, instead of those of all tabs, when the tab is opened or a
value changes while it is open."""

RESTORED_JS: Final = """() => {
  window.isRestored = true;
  window.addressTimer = setTimeout(() => window.writeAddress?.(), 200);
}"""

OPEN_TAB_JS: Final = """() => {
  const tab = new URLSearchParams(location.search).get("tab");
  if (%s.includes(tab)) return { __type__: "update", selected: tab };
}"""
"""Opens the tab that the address names, if there is one: at once, not when a visitor may have opened another."""

THEME: Final = gr.themes.Default(
    primary_hue="indigo",
    secondary_hue="indigo",
    neutral_hue="slate",
    # Names of what the visitor has: a font that the page brought along would be one more request.
    font=("system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
).set(
    # At least 4.5:1, as WCAG 2.2 asks of text.
    color_accent="*primary_600",
    block_info_text_color="*body_text_color",
    block_info_text_color_dark="*body_text_color",
    link_text_color_dark="*secondary_300",
    link_text_color_visited="*secondary_600",
    link_text_color_visited_dark="*secondary_300",
)


def launch_options() -> dict[str, Any]:
    """Keyword arguments of `gr.Blocks.launch` for the page; address and sharing are the caller's.

    The folder of the uploads is made, which other users of the machine may not look into.

    Raises:
        OSError: if it cannot be made, or is a link or another user's.
    """
    folder = Path(get_upload_folder())
    folder.mkdir(0o700, parents=True, exist_ok=True)
    # Whoever sets another folder decides who may look into it.
    if hasattr(os, "getuid") and folder.name == f"emotion48-{os.getuid()}":
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise OSError(f"{folder} is a link, or another user's; set GRADIO_TEMP_DIR to a folder of your own.")
        folder.chmod(0o700)
    guard = Middleware(
        Guard,
        per_minute=PER_MINUTE,
        file_bytes=FILE_MEGABYTES * 1_000_000,
        sweep_seconds=SWEEP_SECONDS,
        keep_seconds=KEEP_SECONDS,
    )
    return {
        "theme": THEME,
        "css": CSS + EXAMPLE_CSS,
        "run_history": False,
        "enable_monitoring": False,
        # Each takes 0.1 MB, and gradio keeps them when their visitors have left: 10,000 would be a gigabyte.
        "state_session_capacity": 500,
        "footer_links": ["api", "settings"],
        "max_file_size": f"{FILE_MEGABYTES}mb",
        # Not a constant: gradio adds to it at every launch.
        "app_kwargs": {"middleware": [guard]},
    }


def build_page(networks: Mapping[str, Network]) -> gr.Blocks:
    """Build the page and its public endpoints; launch it with `launch_options`.

    Args:
        networks: what the page offers, by name; with two or more, a selector above the tabs switches between them.
    """
    gradio.mcp.GradioMCPServer = Tools  # where `launch` looks for it
    # What gradio calls to keep all that visitors give and get, photos too, in memory for links that hold it, and to
    # write it to the disk for whoever asks. This page has no such links.
    SessionState._update_value_in_config = lambda *_: None
    with gr.Blocks(title=TITLE, delete_cache=(SWEEP_SECONDS, KEEP_SECONDS)) as page:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Give a photo with one or more faces. A small network, which sees each face as "
            f"{PIXELS} grey pixels, says which expression it shows.</p>",
            elem_id="intro",
        )
        network = gr.Radio(
            list(networks), value=next(iter(networks)), label="Network", visible=len(networks) > 1, elem_id="network"
        )
        # What comes while it is busy makes gradio repeat an event for all that listens to it: two or more that take a
        # while, over a phone's connection, then repeat each other without end. A state's change is repeated for each.
        chosen = gr.State()
        network.change(lambda name: name, network, chosen, api_visibility="private", show_progress="hidden")
        shared: dict[str, Component] = {"network": network} if len(networks) > 1 else {}
        linked: dict[str, dict[str, Component]] = {}
        opened = {}
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            for name, (title, fill) in TABS.items():
                with gr.Tab(title, id=name) as tab:
                    linked[name] = shared | fill(networks, network, chosen)
                opened[name] = tab.select
        gr.HTML(
            "<p><strong>An expression is not a feeling.</strong> The percentages say how people would probably label "
            "the face in the picture. They say nothing about what the person feels, and they are often wrong: "
            "don't judge anyone by them.</p>"
            "<p><strong>Your photos and clips stay yours.</strong> Only the machine that runs this page reads them, "
            f"and deletes them within {FORGOTTEN_MINUTES} minutes. Nothing is logged.</p>",
            elem_id="notes",
        )
        _link(page, tabs, opened, linked)
    return page.queue(max_size=QUEUE)


def _link(
    page: gr.Blocks,
    tabs: gr.Tabs,
    opened: Mapping[str, Callable[..., Any]],
    linked: Mapping[str, Mapping[str, Component]],
) -> None:
    """Restore what the address says when the page is opened, and keep the address in step from then on.

    Args:
        page: the page.
        tabs: its tabs.
        opened: the event that says that a tab is opened, by the tab's name.
        linked: the components that a link restores, by their name in the query, by the tab's name.
    """
    components = {component: None for of_tab in linked.values() for component in of_tab.values()}
    names = sorted({name for of_tab in linked.values() for name in of_tab})

    def restore(request: gr.Request) -> list[Any]:
        restored = _restored(request.query_params, linked)
        return [restored.get(component, gr.skip()) for component in components]

    page.load(None, None, tabs, js=OPEN_TAB_JS % json.dumps(list(linked)), api_visibility="private")
    page.load(restore, None, [*components], api_visibility="private", show_progress="hidden").then(
        None, None, None, js=RESTORED_JS, api_visibility="private"
    )
    for tab, of_tab in linked.items():
        inputs = list(of_tab.values())
        for opening, events in ((True, [opened[tab]]), (False, [component.change for component in inputs])):
            js = KEEP_ADDRESS_JS % tuple(map(json.dumps, (opening, tab, list(of_tab), names)))
            gr.on(events, None, inputs, None, js=js, api_visibility="private")


def _restored(query: Mapping[str, str], linked: Mapping[str, Mapping[str, Component]]) -> dict[Component, Any]:
    """The values that an address asks for, as far as the page offers them."""
    name = query["tab"] if query.get("tab") in linked else next(iter(linked))
    restored: dict[Component, Any] = {}
    for key, component in linked[name].items():
        text = query.get(key)
        if isinstance(component, gr.Slider):
            try:
                number = float(text)
            except (TypeError, ValueError):
                continue
            if math.isfinite(number):
                restored[component] = min(max(number, component.minimum), component.maximum)
        elif text in [value for _, value in component.choices]:
            restored[component] = text
    return restored
