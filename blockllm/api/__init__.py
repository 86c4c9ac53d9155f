"""OpenAI-compatible HTTP, chat templates, tokenizers, streaming, and the `LLM` class."""
