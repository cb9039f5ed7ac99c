"""Many visitors at once, and some who behave badly; `python -m benchmarks.load` is the long version."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import httpx
import numpy as np
import pytest
from conftest import PATIENCE, with_browser
from playwright.sync_api import Browser, expect

import emotion.ui.live
from benchmarks import load
from emotion.networks import load_networks


@pytest.fixture(params=[2])
def small_page(
    request: pytest.FixtureRequest, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[load.Page]:
    """A page in this process with one camera at a time and two requests that may wait; its parameter is how long a
    camera's turn is, in seconds."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(emotion.ui, "QUEUE", 2)
    monkeypatch.setattr(emotion.ui.live, "VIEWERS", 1)
    monkeypatch.setattr(emotion.ui.live, "TURN_SECONDS", request.param)
    page = emotion.ui.build_page(load_networks(checkpoints / "first"))
    page.launch(prevent_thread_lock=True, quiet=True, **emotion.ui.launch_options())
    yield load.Page.at(page.local_url)
    page.close()


def test_visitors_are_answered_in_fair_turns_beside_some_who_behave_badly(url: str) -> None:
    photos, cameras = asyncio.run(load.visit(load.Page.at(url), visitors=10, seconds=5))
    seen = [*photos, *cameras]
    assert (len(photos), len(cameras)) == (8, 2)
    assert [visitor.errors for visitor in seen] == [[]] * 10
    assert not sum(visitor.busy for visitor in seen)
    answers = [len(visitor.waits) for visitor in photos]
    assert min(answers) >= 1 and max(answers) <= 2 * min(answers) + 1
    assert all(visitor.waits for visitor in cameras)


def test_beyond_its_bound_the_queue_says_busy_and_nothing_else(small_page: load.Page) -> None:
    photos, cameras = asyncio.run(load.visit(small_page, visitors=10, seconds=4, bad=False))
    seen = [*photos, *cameras]
    assert [visitor.errors for visitor in seen] == [[]] * 10
    assert sum(visitor.busy for visitor in seen) and sum(len(visitor.waits) for visitor in photos)


@pytest.mark.parametrize("bother", [load.fall_silent, load.leave_early])
def test_who_falls_silent_or_leaves_holds_nobody_up(small_page: load.Page, bother: Callable) -> None:
    picture = load.photo(640)

    async def together() -> load.Visitor:
        end = time.monotonic() + 6
        frame = load.data_url(picture)
        first = asyncio.create_task(bother(small_page, 1, frame if bother is load.fall_silent else picture, end))
        await asyncio.sleep(1)
        follow, material = (load.show_camera, frame) if bother is load.fall_silent else (load.give_photos, picture)
        visitor = await follow(small_page, 2, material, end)
        first.cancel()
        return visitor

    visitor = asyncio.run(together())
    assert visitor.waits and not visitor.errors


def test_the_table_says_how_long_visitors_waited_and_what_went_wrong() -> None:
    quick = load.Visitor(waits=[float(value) for value in range(101)], busy=1)
    other = load.Visitor(waits=[50.0], errors=["no answer"])
    camera = load.Visitor(waits=[3.0], gaps=[0.25, 0.25])
    summary = load.summary([quick, other])
    assert summary["waits"] == pytest.approx(np.percentile([*range(101), 50], (50, 95, 99)), abs=0.001)
    memory = {"before": 500e6, "after": 600e6, "settled": 520e6, "peak": 700e6, "seconds": 61.0}
    results = {"machine": "an abacus", "visitors": 3, "seconds": 60.0, "photos": summary, "memory": memory}
    lines = load.table(results | {"cameras": load.summary([camera])}).splitlines()
    assert "| photo: until its answer | 2 | 102 | 50.00 s | 94.95 s | 98.99 s |" in lines
    assert "| camera: between two answers in its turn | 1 | 2 | 0.25 s | 0.25 s | 0.25 s |" in lines
    assert '1 errors, 1 times "busy"' in lines[-1] and "got 1 to 101 answers" in lines[-1]
    assert "500 MB before, 600 MB at the end, 520 MB 61 seconds later, at most 700 MB" in lines[-1]


def test_too_few_visitors_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        load.main(["--visitors", "4"])
    assert "give at least 5" in capsys.readouterr().err


@with_browser
@pytest.mark.parametrize("small_page", [2 * PATIENCE], indirect=True)
def test_a_visitor_is_told_that_the_page_is_busy(small_page: load.Page, browser: Browser, photos) -> None:
    with closing(browser.new_context()) as context:
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        page.goto(small_page.url)
        expect(page.locator("#photo-input input[type=file]")).to_be_attached()
        # One camera has its turn, and two wait.
        answers = []
        while answers.count(200) < 3:
            image = {"url": load.data_url(load.photo(640))}
            asked = load.body(small_page.camera, uuid4().hex, [image, small_page.network, None])
            answers.append(
                httpx.post(f"{small_page.url}gradio_api/queue/join", json=asked, timeout=PATIENCE).status_code
            )
            time.sleep(0.5)
        page.set_input_files("#photo-input input[type=file]", photos["person.png"])
        expect(page.locator("[data-testid=toast-body]").first).to_contain_text("busy. Please try again")
