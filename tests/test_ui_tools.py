"""The page as a server of the Model Context Protocol: its own client over HTTP, against app.py in its own process."""

import asyncio
import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import PATIENCE, files_in
from gradio.route_utils import delete_files_created_by_app
from gradio_client import Client, handle_file
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ListToolsResult
from PIL import Image

import emotion.ui
from emotion.networks import load_networks
from emotion.ui.look import data_url


def ask(url: str, tool: str | None = None, arguments: Mapping[str, Any] | None = None) -> Any:
    """What the page says to a call of a tool, or, without one, to the question which there are."""

    async def asked() -> CallToolResult | ListToolsResult:
        async with (
            streamable_http_client(f"{url}gradio_api/mcp/") as (reader, writer, _),
            ClientSession(reader, writer) as session,
        ):
            await session.initialize()
            return await (session.list_tools() if tool is None else session.call_tool(tool, dict(arguments or {})))

    return asyncio.run(asyncio.wait_for(asked(), PATIENCE))


def test_tools_are_the_public_endpoints_and_every_argument_is_described(url):
    tools = {tool.name: tool for tool in ask(url).tools}
    assert list(tools) == ["predict", "video", "augment"]
    assert tools["predict"].description.startswith("Find every face in a picture")
    arguments = {name: tool.inputSchema["properties"] for name, tool in tools.items()}
    names = [["image"], ["video"], ["image", "seed", "strength", "steps"]]
    assert [list(of_tool) for of_tool in arguments.values()] == names
    assert all(argument["description"] for of_tool in arguments.values() for argument in of_tool.values())
    assert [tool.inputSchema["required"] for tool in tools.values()] == [["image"], ["video"], ["image"]]


def test_predict_gives_the_json_that_the_endpoint_gives(url, photos):
    wanted = Client(url, verbose=False).predict(handle_file(photos["pair.jpg"]), api_name="/predict")
    picture = base64.b64encode(photos["pair.jpg"].read_bytes()).decode()
    # An upload is named as `gradio upload-mcp` names it.
    with open(photos["pair.jpg"], "rb") as file:
        [path] = httpx.post(f"{url}gradio_api/upload", files={"files": file}, timeout=PATIENCE).json()
    for image in (f"data:image/jpeg;base64,{picture}", f"{url}gradio_api/file={path}"):
        result = ask(url, "predict", {"image": image})
        [content] = result.content
        item = json.loads(content.text)
        assert not result.isError and len(item["faces"]) == 2
        # A picture without a file has no name.
        assert item | {"image": None} == wanted | {"image": None}


def test_video_gives_the_json_that_the_endpoint_gives(url, clip):
    wanted = Client(url, verbose=False).predict(handle_file(clip), api_name="/video")
    given = f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}"
    [content] = ask(url, "video", {"video": given}).content
    item = json.loads(content.text)
    assert item["faces"] and item | {"video": None} == wanted | {"video": None}


def test_augment_gives_its_pictures_as_pictures(url, photos):
    wanted = Client(url, verbose=False).predict(handle_file(photos["person.png"]), seed=7, api_name="/augment")
    result = ask(url, "augment", {"image": data_url(Image.open(photos["person.png"]), "PNG"), "seed": 7})
    text, *pictures = result.content
    item = json.loads(text.text)
    assert len(pictures) == 24 and item["face"] == "picture 1" and item["draws"][-1] == "picture 24"
    assert [step["parameters"] for step in item["steps"]] == [step["parameters"] for step in wanted["steps"]]
    for picture, url_of_wanted in zip(pictures[-12:], wanted["draws"], strict=True):
        assert (picture.type, picture.mimeType) == ("image", "image/png")
        shown, original = (
            np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
            for data in (picture.data, url_of_wanted.partition(",")[2])
        )
        assert np.array_equal(shown, original)


def test_a_bad_picture_is_told_in_one_sentence(url):
    result = ask(url, "predict", {"image": "data:image/png;base64,bm90aGluZw=="})
    assert "is not a picture" in json.loads(result.content[0].text)["error"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("http://127.0.0.1:{port}/photo.png", "nothing is fetched here"),
        ("https://example.com/photo.png", "nothing is fetched here"),
        ("http://127.0.0.1:{port}/gradio_api/file={server}", "'person.png' was not uploaded"),
        ("{server}", "Invalid file data format"),
        ("file://{server}", "Invalid file data format"),
        ({"path": "{server}", "meta": {"_type": "gradio.FileData"}}, "is not of type 'string'"),
        (None, "is not of type 'string'"),
    ],
)
def test_no_tool_fetches_an_address_or_reads_a_file_of_the_server(url, photos, given, why):
    asked = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    async def ask_beside_a_listener() -> CallToolResult:
        listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        image = given

        def filled(text: str) -> str:
            return text.format(port=port, server=photos["person.png"])

        if isinstance(given, str):
            image = filled(given)
        elif given is not None:
            image = given | {"path": filled(given["path"])}
        async with listener:
            return await asyncio.to_thread(ask, url, "predict", {"image": image})

    result = asyncio.run(ask_beside_a_listener())
    assert result.isError and why in result.content[0].text
    assert not asked


def test_a_picture_given_as_text_is_deleted_like_an_upload(checkpoints, portrait, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr("gradio.mcp.DEFAULT_TEMP_DIR", str(tmp_path))  # gradio has read the variable before
    page = emotion.ui.build_page(load_networks(checkpoints / "first"))
    page.launch(prevent_thread_lock=True, quiet=True, mcp_server=True, **emotion.ui.launch_options())
    result = ask(page.local_url, "predict", {"image": data_url(portrait, "PNG")})
    assert len(json.loads(result.content[0].text)["faces"]) == 1
    assert files_in(tmp_path)
    delete_files_created_by_app(page, age=0)  # what the page does once a minute, with another age
    assert not files_in(tmp_path)
    page.close()
