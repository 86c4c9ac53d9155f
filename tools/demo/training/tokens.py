"""The family's tokenizer, and token windows for training and measuring."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

START, END, PADDING = "<s>", "</s>", "<pad>"
SPECIAL_TOKENS = [START, END, PADDING]

# The models complete text, so a chat becomes comments above a function still to be written.
CODE_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ message['content'] }}\n\n\n"
    "{% else %}"
    "# {{ message['content'].replace('\n', '\n# ') }}\n"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}def {% endif %}"
)
# A model of the language reference is asked with a heading, the way its topics begin.
PROSE_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ message['content'] }}\n"
    "{% if message['role'] != 'assistant' %}"
    "{{ '*' * message['content']|length }}\n"
    "{% endif %}\n"
    "{% endfor %}"
)


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """A special token's id; a tokenizer without it is not the family's."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no {token}")
    return int(found)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer that loses no byte and opens every text with ``<s>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A",
        pair=f"{START} $A $B",
        special_tokens=[(START, token_id(tokenizer, START))],
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int, chat_template: str) -> None:
    """Write the two files that ``AutoTokenizer`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "pad_token": PADDING,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": chat_template,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All documents as one stream of ids, each closed by ``</s>``."""
    end = token_id(tokenizer, END)
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        ids.extend(encoding.ids)
        ids.append(end)
    return torch.tensor(ids, dtype=torch.long)


def windows(stream: torch.Tensor, length: int, start: int) -> torch.Tensor:
    """Rows of ``length`` ids, each opened by ``<s>`` as a prompt would be; the rest is dropped."""
    rows = stream.numel() // (length - 1)
    body = stream[: rows * (length - 1)].view(rows, length - 1)
    return torch.cat([torch.full((rows, 1), start, dtype=torch.long), body], dim=1)


def batches(
    stream: torch.Tensor, length: int, rows: int, start: int, seed: int
) -> Iterator[torch.Tensor]:
    """Endless batches: each epoch cuts the stream at new places and shuffles the windows."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty((0, length), dtype=torch.long)
    while True:
        shift = int(torch.randint(0, length, (1,), generator=generator))
        cut = windows(stream[shift:], length, start)
        shuffled = cut[torch.randperm(cut.shape[0], generator=generator)]
        waiting = torch.cat([waiting, shuffled])
        while waiting.shape[0] >= rows:
            yield waiting[:rows]
            waiting = waiting[rows:]
