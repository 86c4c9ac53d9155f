"""From the tokens of one request to its text: detokenise, find stop strings, say why it ended."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from blockllm.api.detokenize import make_detokenizer
from blockllm.api.stop_strings import StopStringFinder
from blockllm.api.tokenizer import TokenTable
from blockllm.core import Finish, Request, TokenEvent, TokenLogprobs
from blockllm.errors import EngineError


class TextRules(msgspec.Struct, frozen=True):
    """How ids become text, and which text ends it."""

    stops: Sequence[str] = ()
    include_stop: bool = False
    skip_special: bool = True


class Piece(msgspec.Struct):
    """What is new in one choice. `logprobs` and `offsets` are parallel to `token_ids`, or empty;
    an offset is the number of characters of the answer before the first that the token is part
    of: tokens that are parts of one character have one offset.
    """

    index: int
    text: str = ""
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    offsets: list[int] = []
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Choice:
    """One request and its answer so far; feed() it the engine's events in order."""

    def __init__(
        self, index: int, request: Request, tokenizer: TokenTable, rules: TextRules
    ) -> None:
        self.index = index
        self.request = request
        self.num_tokens = 0
        self.cached_tokens = 0
        self.finished = False  # nothing more is shown
        self.engine_finished = False  # the engine has let go of it
        self._num_characters = 0  # that have become certain, whether shown or not
        self._rules = rules
        self._detokenizer = make_detokenizer(tokenizer, request.prompt, rules.skip_special)
        self._finder = StopStringFinder(rules.stops, rules.include_stop) if rules.stops else None

    def feed(self, event: TokenEvent, piece: Piece) -> bool:
        """Add what `event` brings to `piece`; True when it is the last to be shown.

        Raises EngineError when the event reports one.
        """
        if event.finish is not None:
            self.engine_finished = True
        if event.finish is Finish.ERROR:
            raise EngineError(event.error or "the engine could not go on with this request")
        if self.finished:
            return False
        self.cached_tokens = max(self.cached_tokens, event.cached_tokens)
        if event.token is not None:
            self._add_token(event.token, event, piece)
        if event.finish is not None and not self.finished:
            self._end(event.finish, piece)
        return self.finished

    def _add_token(self, token: int, event: TokenEvent, piece: Piece) -> None:
        self.num_tokens += 1
        piece.token_ids.append(token)
        if event.logprobs is not None:
            piece.logprobs.append(event.logprobs)
            piece.offsets.append(self._num_characters)
        if event.finish is Finish.STOP:
            sampling = self.request.sampling
            piece.stop_reason = token if token in sampling.stop_ids else None
            if not self._rules.include_stop:  # the token that ends the text is not part of it
                return
        self._add_text(self._detokenizer.feed(token), piece)

    def _add_text(self, text: str, piece: Piece) -> None:
        self._num_characters += len(text)
        if self._finder is None or self.num_tokens <= self.request.sampling.min_tokens:
            piece.text += text  # nothing stops it, or it is too early: not part of a stop string
            return
        piece.text += self._finder.feed(text)
        if self._finder.found is not None:
            self.finished = True
            piece.finish_reason = "stop"
            piece.stop_reason = self._finder.found

    def _end(self, finish: Finish, piece: Piece) -> None:
        self._add_text(self._detokenizer.flush(), piece)
        if not self.finished:
            if self._finder is not None:
                piece.text += self._finder.flush()
            piece.finish_reason = finish.value
            self.finished = True
