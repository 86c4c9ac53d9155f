"""When a request is over, and whether it may begin."""

from __future__ import annotations

from collections.abc import Collection

from blockllm.core import Finish, Request
from blockllm.engine.kv.cache import KVCache
from blockllm.engine.sequence.sequence import RouteState, Sequence
from blockllm.engine.sequence.tenants import TenantState
from blockllm.errors import BadRequest, ContextTooLong


def finish_reason(sequence: Sequence, token: int) -> Finish | None:
    """Why the sequence ends with `token`, or None if it goes on."""
    sampling = sequence.request.sampling
    if token in sequence.stop_ids and sequence.num_generated >= sampling.min_tokens:
        return Finish.STOP
    return Finish.LENGTH if sequence.num_generated >= sampling.max_tokens else None


def check_request(request: Request, state: RouteState, cache: KVCache) -> None:
    """Raise BadRequest or ContextTooLong if the request can never be served."""
    prompt, sampling = request.prompt, request.sampling
    vocab = state.route.chain.vocab_size
    if not prompt:
        raise BadRequest("prompt: expected at least one token", "prompt")
    _check_ids("prompt", prompt, vocab)
    _check_ids("logit_bias", sampling.logit_bias, vocab)
    _check_ids("stop_token_ids", sampling.stop_ids, vocab)
    if sampling.max_tokens < 1:
        raise BadRequest("max_tokens: expected at least 1", "max_tokens")
    total = len(prompt) + sampling.max_tokens
    if total > state.max_context:
        raise ContextTooLong(
            f"this model's maximum context length is {state.max_context} tokens, but "
            f"{len(prompt)} in the prompt and {sampling.max_tokens} to generate are {total}",
            "max_tokens" if len(prompt) < state.max_context else "prompt",
        )
    rows = state.virtual.num_tokens + total
    pages = cache.missing(state.kv, [0] * len(state.kv.num_bundles), rows)
    if pages > cache.pool.num_pages:
        room = cache.pool.num_pages // state.kv.total_bundles * cache.page_size
        room = max(0, room - state.virtual.num_tokens)
        raise ContextTooLong(
            f"{total} tokens do not fit the server's KV memory, which holds {room} tokens of "
            f"this model; start it with a larger --memory",
            "max_tokens",
        )


def check_quota(sequence: Sequence, tenant: TenantState) -> None:
    """Raise ContextTooLong if the request can never be served within its tenant's quota."""
    if tenant.max_pages and sequence.most_pages > tenant.max_pages:
        raise ContextTooLong(
            f"max_tokens: prompt and answer take up to {sequence.most_pages} pages of KV memory, "
            f"your quota is {tenant.max_pages}; ask for fewer tokens",
            "max_tokens",
        )


def _check_ids(field: str, ids: Collection[int], vocab: int) -> None:
    for token in (min(ids), max(ids)) if ids else ():
        if not 0 <= token < vocab:
            raise BadRequest(
                f"{field}: got the token id {token}, allowed 0 to {vocab - 1}: the model has no "
                "other tokens",
                field,
            )
