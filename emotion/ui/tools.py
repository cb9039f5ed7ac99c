"""The page's endpoints as tools of the Model Context Protocol, served where `GRADIO_MCP_SERVER` is "true"."""

import json
from typing import Any

from gradio.mcp import GradioMCPServer
from gradio_client.utils import traverse


class Tools(GradioMCPServer):
    """Gradio's server of the protocol, but it answers in JSON and keeps no picture; needs the package `mcp`.

    Source: modelcontextprotocol.io/specification/2025-06-18/server/tools
    """

    def convert_strings_to_filedata(self, value: Any, filedata_positions: list[list[str | int]]) -> Any:
        """The arguments of a call with its pictures as files, which are deleted like every upload."""
        converted = super().convert_strings_to_filedata(value, filedata_positions)
        # Gradio writes a data URL into a file, which the page deletes only if it knows of it.
        written = [name for [name] in filedata_positions if str(value.get(name)).startswith("data:")]
        self.blocks.upload_file_set.update(converted[name]["path"] for name in written)
        return converted

    def postprocess_output_data(self, data: Any, root_url: str) -> list[Any]:
        """The answer as text, with its pictures as pictures after it."""
        pictures: list[Any] = []

        def lift(url: str) -> str:
            media_type, content = url.removeprefix("data:").split(";base64,")
            pictures.append(self.types.ImageContent(type="image", data=content, mimeType=media_type))
            return f"picture {len(pictures)}"

        def is_picture(value: Any) -> bool:
            return isinstance(value, str) and value.startswith("data:image/")

        # A language model sees a picture that is one, and drowns in the text of a data URL.
        texts = [json.dumps(traverse(item, lift, is_picture), ensure_ascii=False) for item in data]
        return [*(self.types.TextContent(type="text", text=text) for text in texts), *pictures]
