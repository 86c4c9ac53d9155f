"""What the server sends, as msgspec structs in OpenAI's and vLLM's spelling. UNSET is not sent."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from blockllm.core import Measurement

# what served a request that names one
ServedTier = Literal["default", "flex"]


class PromptTokensDetails(msgspec.Struct):
    """Where the prompt's keys and values came from."""

    cached_tokens: int = 0


class Usage(msgspec.Struct):
    """Token counts of one HTTP request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(msgspec.Struct):
    """One candidate of a position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    """The chosen token of a position and its rivals."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities in the chat format."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct):
    """Log-probabilities in the completion format: parallel lists. Offsets count characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatMessage(msgspec.Struct):
    """The assistant's turn."""

    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    """One answer."""

    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatAnswer(msgspec.Struct, kw_only=True):
    """POST /v1/chat/completions without streaming."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    service_tier: ServedTier | UnsetType = UNSET
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatDelta(msgspec.Struct):
    """What is new in one answer."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    """News of one answer."""

    index: int
    delta: ChatDelta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    """One event of a chat stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    service_tier: ServedTier | UnsetType = UNSET
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(msgspec.Struct):
    """One text, or in a stream what is new in it."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionAnswer(msgspec.Struct, kw_only=True):
    """POST /v1/completions, whole or one event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    service_tier: ServedTier | UnsetType = UNSET
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class ModelEntry(msgspec.Struct, kw_only=True):
    """One served model; bytes are those of its weights. `loss` is what was measured of it: a
    model that is not `exact` was rounded to its format. `switched_off` names its texts' parts that
    broke their limits too often.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "blockllm"
    root: str
    parent: str | None
    kind: str
    family: str
    max_model_len: int
    total_bytes: int
    own_bytes: int
    shared_bytes: int
    num_blocks: int
    num_shared_blocks: int
    has_chat_template: bool
    format: str
    exact: bool
    loss: tuple[Measurement, ...]
    switched_off: list[str] | UnsetType = UNSET


class ModelList(msgspec.Struct):
    """GET /v1/models."""

    data: list[ModelEntry]
    object: Literal["list"] = "list"


class TokenizeAnswer(msgspec.Struct):
    """POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeAnswer(msgspec.Struct):
    """POST /detokenize."""

    prompt: str


class ErrorBody(msgspec.Struct):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(msgspec.Struct):
    """Every answer with a status of 400 or more."""

    error: ErrorBody


class ProgressEntry(msgspec.Struct):
    """What a server does that is not ready: units done of a total, 0 when that is not known."""

    activity: str
    done: int
    total: int


class NotReadyAnswer(msgspec.Struct):
    """An error, and how far the server is."""

    error: ErrorBody
    progress: ProgressEntry
