"""Bodies of HTTP requests: from bytes to checked values, prompts and samplings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from blockllm.api import limits, wire
from blockllm.api.conversation import plain_messages, variables_of
from blockllm.api.errors import describe
from blockllm.api.fields import REFUSED
from blockllm.api.parse import parse
from blockllm.api.template import ChatTemplate
from blockllm.api.tokenizer import TextTokenizer
from blockllm.config import ServerSettings
from blockllm.errors import RequestError
from tools.campaigns.documents import WHOLE, as_bytes, read_document, seeds_of, words_of
from tools.campaigns.draws import Draws
from tools.campaigns.oracle import Target
from tools.campaigns.targets.templates import MESSAGES

CHAT: dict[str, Any] = {
    "model": "base", "messages": MESSAGES, "max_completion_tokens": 4, "n": 2, "stream": True,
    "stream_options": {"include_usage": True}, "temperature": 0.5, "top_p": 0.9, "top_k": 4,
    "logprobs": True, "top_logprobs": 3, "stop": ["a", "b"], "seed": 5, "logit_bias": {"5": -1.5},
    "chat_template_kwargs": {"x": 1}, "documents": [{"title": "t"}], "reasoning_effort": "low",
    "tools": [], "response_format": {"type": "text"}, "user": "u",
}  # fmt: skip
COMPLETION: dict[str, Any] = {
    "model": "base", "prompt": ["hi", [1, 2]], "max_tokens": 4, "logprobs": 2, "echo": False,
    "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1, "min_p": 0.1,
    "stop_token_ids": [2], "ignore_eos": True, "cache_salt": "s", "min_tokens": 1, "best_of": 1,
    "return_token_ids": True, "add_special_tokens": False,
}  # fmt: skip
TOKENIZE: dict[str, Any] = {"prompt": "a", "return_token_strs": True, "add_special_tokens": None}
DETOKENIZE: dict[str, Any] = {"model": "base", "tokens": [1, 2, 3]}
BODIES = (
    (wire.ChatRequest, CHAT),
    (wire.CompletionRequest, COMPLETION),
    (wire.TokenizeRequest, TOKENIZE),
    (wire.DetokenizeRequest, DETOKENIZE),
)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls }}\n{% endfor %}"


def bodies(_scratch: Path) -> Target:
    """A body for each route, as far as the routes go before they ask an agent."""
    from tests.api.family import byte_level_tokenizer

    tokenizer, template = TextTokenizer(byte_level_tokenizer()), ChatTemplate(TEMPLATE, {})
    words = [*words_of(document for _, document in BODIES), *REFUSED, "none", "auto"]

    def run(data: bytes) -> None:
        draws = Draws(data)
        kind, intact = draws.pick(BODIES)
        try:
            body = parse(read_document(draws.rest(), [intact], words), kind)
            _check(body, template, tokenizer)
        except RequestError as error:
            status, answer = describe(error)
            assert 400 <= status < 500, status
            msgspec.json.encode(answer)
            raise

    seeds = [
        bytes([i]) + seed for i, (_, document) in enumerate(BODIES) for seed in seeds_of([document])
    ]
    halves = [b"\0" + bytes([WHOLE]) + as_bytes(CHAT).replace(b"hi", b"\\ud83d")]
    return Target((*seeds, *halves), run)


def _check(body: Any, template: ChatTemplate, tokenizer: TextTokenizer) -> None:
    """What the routes do with a body until its requests are ready to be sent."""
    settings = ServerSettings()
    messages = getattr(body, "messages", None)
    if messages is not None:
        limits.check_count("messages", len(messages), limits.MAX_MESSAGES, least=1)
        text = template.render(plain_messages(messages, False), True, variables_of(body))
        tokenizer.encode(text, False, "messages")
    if isinstance(body, wire.GenerationFields):
        count = body.logprobs if isinstance(body, wire.CompletionRequest) else None
        length = limits.read_max_tokens(body, 100, 16)
        sampling = limits.read_sampling(body, settings, length, count, {})
        limits.read_choices(body, settings)
        limits.read_stops(body.stop, settings.max_stop)
        msgspec.msgpack.decode(msgspec.msgpack.encode(sampling), type=type(sampling))
    prompt = getattr(body, "prompt", None)
    for element in [prompt] if isinstance(prompt, str) else prompt or []:
        if isinstance(element, str):
            tokenizer.encode(element, True)
        elif isinstance(element, list):
            limits.check_prompt(element, 100, "prompt")
