"""Chosen tokens between device and host: what `draw` gives at once and `collect` tells later."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from blockllm.core import TokenLogprobs
from blockllm.engine.device.transfer import Download, upload
from blockllm.engine.sampling.choose import TopPick


class Sampled(NamedTuple):
    """One row's choice; `token` is None if the logits are not finite."""

    token: int | None
    logprobs: TokenLogprobs | None
    revised: bool = False  # `Draw.tokens` held another one until now


class WantedLogprobs(NamedTuple):
    """Log-probabilities of the model itself, before penalties and temperature (as vLLM)."""

    rows: list[int]  # [k] which rows want them
    counts: list[int]  # [k] how many of the most likely tokens each wants
    where: torch.Tensor  # [k] the rows on the device
    raw: torch.Tensor  # [k, vocab] log-probabilities

    def read(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Of the chosen tokens, and the most likely ones with their ids. tokens: [rows]"""
        chosen = self.raw.gather(1, tokens[self.where][:, None])[:, 0]
        best = self.raw.topk(min(max(self.counts), self.raw.shape[-1]), dim=-1)
        return [chosen, best.values, best.indices]

    def tell(
        self, chosen: torch.Tensor, values: torch.Tensor, ids: torch.Tensor
    ) -> dict[int, TokenLogprobs]:
        """What `read` gave, once it is on the host, by row."""
        found = zip(chosen.tolist(), values.tolist(), ids.tolist(), strict=True)
        return {
            row: TokenLogprobs(own, tuple(zip(best_ids[:count], best[:count], strict=True)))
            for row, count, (own, best, best_ids) in zip(self.rows, self.counts, found, strict=True)
        }


class Draw:
    """The choices of some rows. The device has them now, the host may collect them later."""

    def __init__(
        self,
        tokens: torch.Tensor,
        finite: torch.Tensor,
        asked: WantedLogprobs | None = None,
        picked: tuple[TopPick, np.ndarray] | None = None,
    ) -> None:
        """tokens, finite: [rows]; `picked`: a choice that may have to be made again, and the rows
        it was made for."""
        self.tokens = tokens  # [rows] on the device
        self._finite, self._asked, self._picked = finite, asked, picked
        self._coming = self._download()

    def _download(self) -> Download:
        parts = [self.tokens, self._finite]
        if self._asked is not None:
            parts += self._asked.read(self.tokens)
        if self._picked is not None and self._picked[0].is_open is not None:
            parts.append(self._picked[0].is_open)
        return Download(parts)

    @torch.inference_mode()
    def collect(self) -> list[Sampled]:
        """Wait for the choices and tell them; once."""
        tokens, finite, *others = self._coming.wait()
        first = chosen = tokens.tolist()
        if self._choose_again(others):
            tokens, finite, *others = self._download().wait()
            chosen = tokens.tolist()
        logprobs = self._asked.tell(*others[:3]) if self._asked is not None else {}
        return [
            Sampled(token if ok else None, logprobs.get(row), token != before)
            for row, (token, ok, before) in enumerate(
                zip(chosen, finite.tolist(), first, strict=True)
            )
        ]

    def _choose_again(self, arrived: list[torch.Tensor]) -> bool:
        """Look at all tokens for the rows that are open; whether there were any."""
        if self._picked is None or self._picked[0].is_open is None:
            return False
        pick, rows = self._picked
        open_rows = arrived[-1].numpy().nonzero()[0]
        if not len(open_rows):
            return False
        among, where = upload([open_rows, rows[open_rows]], self.tokens.device)
        self.tokens = self.tokens.index_copy(0, where, pick.again(among))
        return True
