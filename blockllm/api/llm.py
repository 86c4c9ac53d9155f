"""In-process use: the models of a zoo, without a server.

with LLM("base") as llm:
    print(llm.generate("def add(", sampling=Sampling(temperature=0))[0].text)
"""

from __future__ import annotations

import atexit
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import msgspec

from blockllm.api import limits
from blockllm.api.choice import Piece, TextRules
from blockllm.api.conversation import read_messages
from blockllm.api.generation import AgentPort, Generation, make_choices
from blockllm.api.loop import EventLoopAgent
from blockllm.api.models import Models, ServedModel, ZooReader, load_models
from blockllm.api.text_calls import TASKS, chat_call, encode_call
from blockllm.api.texts import naming
from blockllm.cluster.agent import EnginePort, Loaded
from blockllm.cluster.local import LocalAgent
from blockllm.cluster.opening import open_engine
from blockllm.config import EngineSettings, default_zoo, load
from blockllm.core import Request, Sampling, TokenLogprobs
from blockllm.errors import BlockllmError
from blockllm.observability.stats import EngineStats
from blockllm.workers.inline import InProcess
from blockllm.workers.single import SingleWorker

Prompt = str | Sequence[int]
Conversation = Sequence[Mapping[str, Any]]


class Completion(msgspec.Struct):
    """One finished answer. `finish_reason` is stop, length or abort."""

    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: list[TokenLogprobs]
    cached_tokens: int


class LLM:
    """Loads models and serves them from a thread of this process; safe to use from any thread.
    Tokenizers and templates work in a process beside it, within limits, as they do in a server.

    Errors are those of blockllm.errors: UnknownModel, OutOfMemory and ConfigError here,
    BadRequest, ContextTooLong, Overloaded and EngineError from every generating method.
    """

    def __init__(
        self,
        models: str | Sequence[str] | None = None,
        zoo: str | None = None,
        **engine_settings: Any,
    ) -> None:
        """Load these models of the zoo, or all. Keywords are the fields of EngineSettings."""
        settings = load(EngineSettings, "engine", None, engine_settings)

        from blockllm.zoo import Zoo

        names = [models] if isinstance(models, str) else models
        folder = zoo or default_zoo()
        caller = SingleWorker(TASKS)
        try:
            with Zoo(folder).moment() as moment:
                read = load_models(moment, names, settings.max_context, caller)
            self._start(read, lambda: open_engine(folder, read.chains, settings), caller)
        except BaseException:
            caller.close()
            raise
        try:
            self.models.require(names or ())
        except BlockllmError:
            self.close()
            raise

    @classmethod
    def over(cls, zoo: ZooReader, make_engine: Callable[[], EnginePort]) -> LLM:
        """An LLM over another engine and zoo, for tests and experiments."""
        llm = cls.__new__(cls)
        caller = InProcess(TASKS)
        models = load_models(zoo, None, caller=caller)
        llm._start(models, lambda: Loaded(make_engine()), caller)
        return llm

    def _start(
        self, models: Models, load: Callable[[], Loaded], caller: SingleWorker | InProcess
    ) -> None:
        self.models = models
        self._caller = caller
        self._agent = LocalAgent(load)
        self.models.leave_out(self._agent.left_out)
        atexit.register(self.close)  # a thread inside torch must not outlive the interpreter
        self.models.limit(self._agent.stats.max_context)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread; unfinished answers fail with AgentDied."""
        atexit.unregister(self.close)
        self._agent.close()
        self._caller.close()

    @property
    def stats(self) -> EngineStats:
        """The engine's latest books, at most a second old while it works."""
        return self._agent.stats

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        model: str | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        n: int = 1,
        offline: bool = False,
    ) -> list[Completion]:
        """n completions per prompt, in order; all prompts are computed together. `offline`: they
        take only what other requests leave."""
        asked = _as_list(prompts), model, sampling, stop, n, offline
        generation = self._plan(self._agent, *asked)
        with generation:
            return _completions(generation, generation.collect_blocking())

    async def agenerate(
        self,
        prompts: Prompt | Sequence[Prompt],
        model: str | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        n: int = 1,
        offline: bool = False,
    ) -> list[Completion]:
        """generate() for coroutines; cancelling the task cancels the requests."""
        asked = _as_list(prompts), model, sampling, stop, n, offline
        generation = self._plan(EventLoopAgent(self._agent), *asked)
        with generation:
            return _completions(generation, await generation.collect())

    def stream(
        self,
        prompt: Prompt,
        model: str | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
    ) -> Iterator[Piece]:
        """Pieces of one completion as they come; leaving the loop cancels the rest."""
        with self._plan(self._agent, [prompt], model, sampling, stop, 1) as generation:
            for pieces in generation.pieces_blocking():
                yield from pieces

    async def astream(
        self,
        prompt: Prompt,
        model: str | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
    ) -> AsyncIterator[Piece]:
        """stream() for coroutines; close it (contextlib.aclosing) to cancel at once."""
        with self._plan(
            EventLoopAgent(self._agent), [prompt], model, sampling, stop, 1
        ) as generation:
            async for pieces in generation.pieces():
                for piece in pieces:
                    yield piece

    def chat(
        self,
        messages: Conversation,
        model: str | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
    ) -> Completion:
        """The assistant's next turn, as the model's chat template asks for it."""
        return self.generate(self.chat_prompt(messages, model), model, sampling, stop)[0]

    def chat_stream(
        self,
        messages: Conversation,
        model: str | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
    ) -> Iterator[Piece]:
        """chat() piece by piece."""
        return self.stream(self.chat_prompt(messages, model), model, sampling, stop)

    def chat_prompt(
        self,
        messages: Conversation,
        model: str | None = None,
        special_tokens_in_messages: bool = False,
    ) -> list[int]:
        """The ids a conversation becomes. Text of a message that spells a special token stays text
        unless `special_tokens_in_messages`. Raises BadRequest when there is no chat template.
        """
        found = self.models.find(model)
        content, read = found.require_template(), read_messages(messages)
        call = chat_call(content, read, {}, as_tokens=special_tokens_in_messages)
        with naming(found.name, "messages"):
            return found.check_tokens(self._caller.call(call), "messages")

    def encode(self, text: str, model: str | None = None, add_special: bool = True) -> list[int]:
        """The ids of a text; `add_special` adds what the tokenizer puts around texts. Raises
        BadRequest when the model has no tokenizer, or no weights for one of the tokens."""
        found = self.models.find(model)
        call = encode_call(found.require_tokenizer(), text, add_special, "prompt")
        with naming(found.name, "prompt"):
            return found.check_tokens(self._caller.call(call), "prompt")

    def _plan(
        self,
        agent: AgentPort,
        prompts: Sequence[Prompt],
        model: str | None,
        sampling: Sampling | None,
        stop: str | Sequence[str],
        n: int,
        offline: bool = False,
    ) -> Generation:
        found = self.models.find(model)
        ids = [self._ids(found, prompt) for prompt in prompts]
        stops = [stop] if isinstance(stop, str) else list(stop)
        rules = TextRules(limits.read_stops(stops, len(stops)))
        template = Request(id="", model=found.name, prompt=(), offline=offline)
        samplings = [_sampling(found, sampling, len(each)) for each in ids]
        return Generation(agent, make_choices(template, ids, samplings, n, found.decoder, rules))

    def _ids(self, model: ServedModel, prompt: Prompt) -> Sequence[int]:
        ids = self.encode(prompt, model.name) if isinstance(prompt, str) else list(prompt)
        limits.check_prompt(ids, model.max_context, "prompt")
        return ids


def _as_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [[token for token in prompts if isinstance(token, int)]]
    return [prompt for prompt in prompts if not isinstance(prompt, int)]


def _sampling(model: ServedModel, given: Sampling | None, num_prompt: int) -> Sampling:
    """The sampling that a caller gave, checked, or the model's own."""
    if given is not None:
        return limits.check_sampling(given)
    own: dict[str, Any] = dict(model.defaults)
    sampling = limits.check_sampling(Sampling(**own))
    most = min(sampling.max_tokens, model.max_context - num_prompt)
    return msgspec.structs.replace(sampling, max_tokens=most)


def _completions(generation: Generation, collected: list[list[Piece]]) -> list[Completion]:
    return [
        Completion(
            "".join(piece.text for piece in pieces),
            [token for piece in pieces for token in piece.token_ids],
            pieces[-1].finish_reason or "stop",
            [logprobs for piece in pieces for logprobs in piece.logprobs],
            choice.cached_tokens,
        )
        for choice, pieces in zip(generation.choices, collected, strict=True)
    ]
