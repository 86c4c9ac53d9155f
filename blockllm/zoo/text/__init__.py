"""What a model's text files say: its tokens, where answers end, how it is sampled, its template."""

from blockllm.zoo.text.files import TextFiles, find_text_files
from blockllm.zoo.text.loading import Loaded, load_tokenizer
from blockllm.zoo.text.tokens import Tokens

__all__ = ["Loaded", "TextFiles", "Tokens", "find_text_files", "load_tokenizer"]
