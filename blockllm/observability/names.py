"""Every metric's name and help text. Stems are vLLM's where vLLM has the same thing."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """A name as Prometheus shows it (counters get `_total` on the wire) and what it means."""

    name: str
    help: str


RUNNING = Metric("blockllm_num_requests_running", "Sequences admitted to the engine.")
WAITING = Metric("blockllm_num_requests_waiting", "Requests waiting for admission.")
KV_USAGE = Metric("blockllm_kv_cache_usage_perc", "Share of KV pages in use, 0 to 1.")
PROMPT_TOKENS = Metric("blockllm_prompt_tokens", "Prompt tokens processed, by model.")
GENERATION_TOKENS = Metric("blockllm_generation_tokens", "Tokens generated, by model.")
PREFIX_QUERIES = Metric("blockllm_prefix_cache_queries", "Prompt tokens looked up.")
PREFIX_HITS = Metric("blockllm_prefix_cache_hits", "Prompt tokens found in the prefix index.")
PREEMPTIONS = Metric("blockllm_num_preemptions", "Sequences whose pages were taken back.")
TURNS = Metric("blockllm_turns", "Turns of the engine loop.")
PAGES = Metric("blockllm_pages", "KV pages, by state: used, cached, free.")
KV_BYTES = Metric("blockllm_kv_bytes", "Bytes of the KV page pool.")
BLOCKS = Metric("blockllm_blocks", "Distinct blocks in memory.")
SPANS = Metric("blockllm_spans", "Spans the served chains are cut into.")
SPAN_HOPS = Metric("blockllm_span_hops", "Hops run, by span.")
SPAN_ROWS = Metric("blockllm_span_rows", "Rows carried; divided by hops: rows per hop.")
SPAN_MODELS = Metric("blockllm_span_models", "Models that share a span.")
WEIGHT_BYTES = Metric("blockllm_weight_bytes", "Bytes of weights in memory, each block once.")
WEIGHT_BYTES_UNSHARED = Metric(
    "blockllm_weight_bytes_unshared", "Bytes the same models would need without sharing."
)
AGENT_UP = Metric("blockllm_agent_up", "1 while the agent is ready.")
AGENT_RESTARTS = Metric("blockllm_agent_restarts", "Times the agent had to be started again.")

SUCCESS = Metric("blockllm_request_success", "Requests ended, by reason.")
REFUSED = Metric("blockllm_requests_refused", "Answers with an error status, by status.")
CONTENT_FAULTS = Metric(
    "blockllm_content_faults", "Templates and tokenizers that broke their limits, by model."
)
MODEL_FIRST_TOKEN_SECONDS = Metric(
    "blockllm_model_first_token_seconds", "Sum over a model's requests: arrival to first token."
)
MODEL_REQUEST_SECONDS = Metric(
    "blockllm_model_request_seconds", "Sum over a model's requests: arrival to the end."
)
QUEUE_TIME = Metric("blockllm_request_queue_time_seconds", "From arrival to admission.")
TIME_TO_FIRST_TOKEN = Metric(
    "blockllm_time_to_first_token_seconds", "From arrival to the first token."
)
INTER_TOKEN_LATENCY = Metric(
    "blockllm_inter_token_latency_seconds", "Between two outputs of one request."
)
TIME_PER_OUTPUT_TOKEN = Metric(
    "blockllm_request_time_per_output_token_seconds",
    "Mean per request: (last token - first token) / (tokens - 1).",
)
LATENCY = Metric("blockllm_e2e_request_latency_seconds", "From arrival to the end.")
REQUEST_OVERHEAD = Metric(
    "blockllm_request_overhead_seconds",
    "From a request's last byte to the engine; waiting for the engine's turn to end is not in it.",
)
TOKEN_OVERHEAD = Metric(
    "blockllm_token_overhead_seconds",
    "From a token's event in the agent to its bytes on the socket, while the client keeps up.",
)
REQUEST_PROMPT_TOKENS = Metric("blockllm_request_prompt_tokens", "Prompt tokens of one request.")
REQUEST_GENERATION_TOKENS = Metric(
    "blockllm_request_generation_tokens", "Tokens generated for one request."
)
