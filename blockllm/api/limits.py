"""From a checked request body to a Sampling: every bound a client can meet.

Each error names the field, what was sent and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from blockllm.api import wire
from blockllm.config import ServerSettings
from blockllm.core import Sampling
from blockllm.errors import BadRequest, ContextTooLong
from blockllm.zoo.text import generation

Defaults = Mapping[str, float | int]  # of sampling fields

MAX_STOP_CHARACTERS = 1024  # per stop string
MAX_STOP_IDS = 256
MAX_TOKEN_ID = 2**31 - 1
MAX_MESSAGES = 4096
MAX_SALT = 256  # characters of a cache salt

# field → (lowest, highest)
BOUNDS: dict[str, tuple[float, float]] = {
    **generation.BOUNDS,
    "min_tokens": (0, MAX_TOKEN_ID),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (-(2**63), 2**63 - 1),
}
SAMPLING_FIELDS = tuple(BOUNDS)


def refuse(field: str, got: object, allowed: str) -> BadRequest:
    """The error for one field out of bounds."""
    shown = repr(got) if isinstance(got, int | float) else str(got)
    return BadRequest(f"{field}: got {shown}, allowed {allowed}", field)


def check_count(field: str, count: int, most: int, least: int = 0) -> None:
    """Raises BadRequest unless least ≤ count ≤ most."""
    if not least <= count <= most:
        raise refuse(field, f"{count} elements", f"{least} to {most}")


def check_sampling(sampling: Sampling) -> Sampling:
    """The same sampling in the engine's spelling, its numbers found in range. Raises BadRequest."""
    for field, (lowest, highest) in BOUNDS.items():
        value = getattr(sampling, field)
        if value is None:
            continue
        if not lowest <= value <= highest:  # not a number is refused too
            raise refuse(field, value, f"{lowest} to {highest}")
    if sampling.min_tokens > sampling.max_tokens:
        raise refuse("min_tokens", sampling.min_tokens, f"up to max_tokens ({sampling.max_tokens})")
    for token, bias in sampling.logit_bias.items():
        if not (0 <= token <= MAX_TOKEN_ID and -100 <= bias <= 100):
            raise refuse("logit_bias", f"{token}: {bias}", "token ids with -100 to 100")
    if sampling.logprobs is not None and sampling.logprobs < 0:
        raise refuse("logprobs", sampling.logprobs, "0 or more")
    if any(not 0 <= token <= MAX_TOKEN_ID for token in sampling.stop_ids):
        raise refuse("stop_token_ids", "an id out of range", f"0 to {MAX_TOKEN_ID}")
    if sampling.top_p == 0:  # no share of the probability: the most likely token only
        return msgspec.structs.replace(sampling, top_p=1.0, top_k=1)
    if sampling.top_k == -1:  # vLLM's spelling of "off"
        return msgspec.structs.replace(sampling, top_k=0)
    return sampling


def read_sampling(
    body: wire.GenerationFields,
    settings: ServerSettings,
    max_tokens: int,
    logprobs: int | None,
    defaults: Defaults,
) -> Sampling:
    """The request's sampling, checked. `max_tokens` and `logprobs` differ between the routes;
    `defaults` hold for fields that the request leaves out.
    """
    check_count("logit_bias", len(body.logit_bias or {}), settings.max_logit_bias)
    check_count("stop_token_ids", len(body.stop_token_ids or []), MAX_STOP_IDS)
    if logprobs is not None and not 0 <= logprobs <= settings.max_logprobs:
        field = "top_logprobs" if isinstance(body, wire.ChatRequest) else "logprobs"
        raise refuse(field, logprobs, f"0 to {settings.max_logprobs}")
    given: dict[str, Any] = {name: getattr(body, name) for name in SAMPLING_FIELDS}
    given = {**defaults} | {name: value for name, value in given.items() if value is not None}
    given["max_tokens"] = max_tokens
    return check_sampling(
        Sampling(
            **given,
            logit_bias=body.logit_bias or {},
            stop_ids=tuple(body.stop_token_ids or ()),
            ignore_eos=bool(body.ignore_eos),
            logprobs=logprobs,
        )
    )


def read_choices(body: wire.GenerationFields, settings: ServerSettings) -> int:
    """How many answers per prompt."""
    n = 1 if body.n is None else body.n
    if not 1 <= n <= settings.max_choices:
        raise refuse("n", n, f"1 to {settings.max_choices}")
    if body.best_of is not None and body.best_of != n:
        raise refuse("best_of", body.best_of, f"n ({n})")
    return n


def read_stops(stop: str | list[str] | None, most: int) -> list[str]:
    """The stop strings of a request; empty ones stop nothing."""
    stops = [stop] if isinstance(stop, str) else stop or []
    check_count("stop", len(stops), most)
    for text in stops:
        if len(text) > MAX_STOP_CHARACTERS:
            raise refuse("stop", f"{len(text)} characters", f"up to {MAX_STOP_CHARACTERS}")
    return [text for text in stops if text]


def check_prompt(ids: list[int], max_context: int, param: str) -> int:
    """How many tokens may follow this prompt. Raises BadRequest or ContextTooLong."""
    if not ids:
        raise BadRequest(f"{param}: the prompt has no tokens", param)
    if min(ids) < 0 or max(ids) > MAX_TOKEN_ID:
        raise refuse(param, "an id out of range", f"0 to {MAX_TOKEN_ID}")
    room = max_context - len(ids)
    if room < 1:
        raise prompt_too_long(f"{len(ids)} tokens", max_context, param)
    return room


def prompt_too_long(got: str, max_context: int, param: str) -> ContextTooLong:
    """The error for a prompt that leaves no room for an answer."""
    return ContextTooLong(
        f"{param}: got {got}, allowed {max_context - 1}: "
        f"the model's context is {max_context} tokens, of which one is for the answer",
        param,
    )


def read_max_tokens(body: wire.GenerationFields, room: int, default: int) -> int:
    """Length of the answer. Raises ContextTooLong when the client asked for more than fits."""
    asked, param = body.max_completion_tokens, "max_completion_tokens"
    if asked is None:
        asked, param = body.max_tokens, "max_tokens"
    if asked is None:
        return min(default, room)
    if asked < 1:
        raise refuse(param, asked, "1 or more")
    if asked > room:
        raise ContextTooLong(
            f"{param}: got {asked}, allowed {room}: "
            "prompt and answer together exceed the model's context",
            param,
        )
    return asked
