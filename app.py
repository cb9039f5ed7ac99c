"""Serve the page: `python app.py`, then open the address that it prints."""

import argparse
import ctypes
import os
import sys


def main(arguments: list[str] | None = None) -> int:
    """Load the network, build the page and serve it until interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Serve the page that finds faces in a photo and says which expression each one shows.",
        epilog="EMOTION_CHECKPOINT names another network (folder, .pth file or Hub id), or a folder of several "
        "to choose from. EMOTION_QUEUE, EMOTION_PER_MINUTE and EMOTION_FILE_MB limit what visitors may ask. "
        "Gradio's own variables, such as GRADIO_SERVER_NAME, hold where a flag is left out.",
    )
    parser.add_argument(
        "--share", action="store_true", default=None, help="also open a public link, through gradio.live"
    )
    parser.add_argument(
        "--host", metavar="ADDRESS", help="address to listen on (0.0.0.0: every network; default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", metavar="NUMBER", type=int, help="port to listen on (default: first free one from 7860)"
    )
    options = parser.parse_args(arguments)

    _share_heaps()
    # Else huggingface_hub asks its host which program it runs in, as soon as the page serves language models.
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        # Here and not above: neither `--help` nor a refusal need wait for gradio.
        from emotion.networks import load_networks

        networks = load_networks(os.environ.get("EMOTION_CHECKPOINT"))
        # A setting that is wrong shows at the import.
        from emotion.ui import build_page, launch_options

        if os.environ.get("SPACES_ZERO_GPU"):
            _register_with_zero_gpu()
        build_page(networks).launch(
            share=options.share, server_name=options.host, server_port=options.port, **launch_options()
        )
    except (ValueError, OSError, OverflowError) as error:  # the last: no such port
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    return 0


def _share_heaps() -> None:
    """Let all threads share two heaps, one for each core of the hosts: else each has one of its own to fill.

    Must come before any other thread is there; MALLOC_ARENA_MAX, if it is set, holds instead. See mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(-8, 2)  # M_ARENA_MAX


def _register_with_zero_gpu() -> None:
    """Register a function that may ask for a GPU: a Space on ZeroGPU does not start without one.

    Nothing on the page calls it: a CPU answers sooner than a GPU is lent, and takes nothing from a visitor's quota.
    """
    import spaces  # is there on every Space
    import torch

    spaces.GPU(torch.cuda.get_device_name)


if __name__ == "__main__":
    sys.exit(main())
