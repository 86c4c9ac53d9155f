"""What clients send, as msgspec structs: the shapes and nothing else (limits.py has the bounds).

Fields not named here are ignored, because OpenAI clients send extra ones; fields of OpenAI's
that change the answer and are not supported are named, so that they can be refused.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from blockllm.errors import BadRequest

T = TypeVar("T")


class StreamOptions(msgspec.Struct):
    """Which usage chunks a stream carries."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class ContentPart(msgspec.Struct):
    """One part of a message; only text is served."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Message(msgspec.Struct):
    """One turn of a conversation."""

    role: str
    content: str | list[str | ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class GenerationFields(msgspec.Struct, kw_only=True):
    """What chat and completion requests have in common. None means: not given."""

    model: str
    max_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool | None = None
    cache_salt: str | None = None
    user: str | None = None
    # refused unless empty
    best_of: int | None = None
    prompt_logprobs: int | None = None
    guided_json: Any = None
    structured_outputs: Any = None


class ChatRequest(GenerationFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    # refused unless empty
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None
    continue_final_message: bool = False
    chat_template: str | None = None
    echo: bool = False


class CompletionRequest(GenerationFields, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    add_special_tokens: bool = True
    # refused unless empty
    suffix: str | None = None
    echo: bool | None = None
    response_format: dict[str, Any] | None = None
    prompt_embeds: Any = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize: text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


def parse(body: bytes, kind: type[T]) -> T:
    """Decode one request body. Raises BadRequest naming the field and what was expected."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at ")
        missing = re.search(r"missing required field `(\w+)`", message)
        name = place.rpartition("`$")[2].rstrip("`").lstrip(".")
        param = ".".join(filter(None, (name, missing[1] if missing else None))) or None
        raise BadRequest(f"{param}: {message}" if param else message, param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
