"""What clients send, as msgspec structs: the shapes and nothing else (limits.py has the bounds).

parse.py reads bodies into them; fields.py has the names that other servers know beside these.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec


class StreamOptions(msgspec.Struct):
    """Which usage chunks a stream carries."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ContentPart(msgspec.Struct, omit_defaults=True):
    """One part of a message; only text is served."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Message(msgspec.Struct, omit_defaults=True):
    """One turn of a conversation."""

    role: str
    content: str | list[str | ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    # refused unless empty
    function_call: Any = None
    audio: Any = None
    tools: Any = None
    task: Any = None


# OpenAI's names; "flex" is offline here, the others are what a request without the field gets
ServiceTier = Literal["auto", "default", "flex", "scale", "priority"]


class GenerationFields(msgspec.Struct, kw_only=True):
    """What chat and completion requests have in common. None: not given, as null is."""

    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
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
    service_tier: ServiceTier | None = None


class TemplateFields(Protocol):
    """What a model's chat template is given beside the messages."""

    add_generation_prompt: bool
    chat_template_kwargs: dict[str, Any] | None
    documents: list[dict[str, Any]] | None
    reasoning_effort: str | float | None


class ChatRequest(GenerationFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | float | None = None


class CompletionRequest(GenerationFields, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    add_special_tokens: bool = True


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize: text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | float | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]
