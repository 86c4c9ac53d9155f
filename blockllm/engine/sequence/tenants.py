"""What each tenant was served: a virtual token counter (Fairness in Serving Large Language Models,
arXiv 2401.00588), and its quotas."""

from __future__ import annotations

from blockllm.config import TenantSettings

# what tokens count for: a token of an answer takes a row of its own turn
INPUT_TOKEN, OUTPUT_TOKEN = 1.0, 2.0


class TenantState:
    """A tenant's counter, quotas, and the pages that are promised to its running sequences."""

    def __init__(self, settings: TenantSettings) -> None:
        self.weight = settings.weight
        self.max_rows = settings.max_rows
        self.max_pages = settings.max_pages
        self.max_waiting = settings.max_waiting
        self.counter = 0.0  # tokens by what they count for / weight
        self.num_running = 0
        self.num_pages = 0  # that its running sequences may come to hold

    def begin(self, pages: int) -> None:
        """A sequence runs from now on that may come to hold so many pages."""
        self.num_running += 1
        self.num_pages += pages

    def end(self, pages: int) -> None:
        """Such a sequence runs no more."""
        self.num_running -= 1
        self.num_pages -= pages

    def charge(self, input_tokens: int, output_tokens: int) -> None:
        """These tokens were served. Rows on known pages are not, nor rows computed again."""
        tokens = INPUT_TOKEN * input_tokens + OUTPUT_TOKEN * output_tokens
        self.counter += tokens / self.weight

    def lift(self, least: float) -> None:
        """A tenant that comes back has no credit from the time in which it asked for nothing."""
        self.counter = max(self.counter, least)
