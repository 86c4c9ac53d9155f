"""Models to chat with in a terminal: one in this process, or one behind a server."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import msgspec

from blockllm.api.llm import LLM
from blockllm.core import Sampling
from blockllm.errors import EngineError, ModelNotFound

Messages = list[dict[str, str]]


class ChatModel(Protocol):
    """Answers a conversation, or continues a text when the model has no chat template."""

    name: str  # of the model
    has_template: bool

    def answer(self, messages: Messages) -> Iterator[str]: ...
    def complete(self, text: str) -> Iterator[str]: ...


class LocalChatModel:
    """A model loaded into this process."""

    def __init__(self, llm: LLM, model: str, sampling: Mapping[str, float]) -> None:
        """`sampling` are fields of core.Sampling; the others are the model's own."""
        self._llm = llm
        self._model = llm.models.find(model)
        own: dict[str, Any] = {**self._model.defaults, **sampling}
        self._sampling = Sampling(**own)
        self.name = self._model.name
        self.has_template = self._model.has_template

    def answer(self, messages: Messages) -> Iterator[str]:
        return self._show(self._llm.chat_prompt(messages, self._model.name))

    def complete(self, text: str) -> Iterator[str]:
        return self._show(self._llm.encode(text, self._model.name))

    def _show(self, ids: list[int]) -> Iterator[str]:
        room = max(self._model.max_context - len(ids), 1)
        most = min(self._sampling.max_tokens, room)
        sampling = msgspec.structs.replace(self._sampling, max_tokens=most)
        for piece in self._llm.stream(ids, self._model.name, sampling):
            yield piece.text


class RemoteChatModel:
    """A model behind a running server."""

    def __init__(self, url: str, key: str, model: str, sampling: Mapping[str, float]) -> None:
        """Raises ModelNotFound or EngineError when the server has no such model or is away."""
        self.name = model
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._fields: dict[str, Any] = {
            "model": model,
            "stream": True,
            **sampling,
        }
        with self._open(f"/v1/models/{urllib.parse.quote(model)}", None) as response:
            self.has_template = bool(json.load(response).get("has_chat_template", True))

    def answer(self, messages: Messages) -> Iterator[str]:
        for choice in self._stream("/v1/chat/completions", {"messages": messages}):
            yield choice["delta"].get("content") or ""

    def complete(self, text: str) -> Iterator[str]:
        for choice in self._stream("/v1/completions", {"prompt": text}):
            yield choice["text"]

    def _stream(self, path: str, fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with self._open(path, {**self._fields, **fields}) as response:
            for line in response:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise EngineError(event["error"]["message"])
                yield from event["choices"]

    def _open(self, path: str, fields: dict[str, Any] | None) -> http.client.HTTPResponse:
        data = json.dumps(fields).encode() if fields is not None else None
        request = urllib.request.Request(self._url + path, data, self._headers)
        try:
            response: http.client.HTTPResponse = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            message = json.loads(error.read())["error"]["message"]
            raise (ModelNotFound if error.code == 404 else EngineError)(message) from error
        except urllib.error.URLError as error:
            raise EngineError(f"{self._url}: {error.reason}") from error
        return response
