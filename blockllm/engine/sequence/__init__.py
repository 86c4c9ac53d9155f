"""One request inside the engine: its tokens, progress, pages and limits."""
