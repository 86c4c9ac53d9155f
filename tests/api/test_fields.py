"""Fields of OpenAI, vLLM, SGLang and llama.cpp: implemented, refused by name, or safe to ignore."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from blockllm.api import wire
from blockllm.api.conversation import variables_of
from blockllm.api.fields import IGNORED, REFUSED, REFUSED_OF_MESSAGE
from blockllm.api.keys import KeyRing
from blockllm.api.models import Models, ServedModel
from blockllm.api.parse import parse
from blockllm.api.text import ModelText
from blockllm.api.text_calls import TextContent
from blockllm.core import ModelCard
from blockllm.errors import BadRequest, ModelNotFound
from tests.api.test_auth import InstantAgent, make

TEXT, TALK = "/v1/completions", "/v1/chat/completions"
BODIES = {
    TEXT: {"model": "base", "prompt": "a", "max_tokens": 1},
    TALK: {"model": "base", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
}
KINDS = {TEXT: wire.CompletionRequest, TALK: wire.ChatRequest}

OPENAI = """
audio best_of echo frequency_penalty function_call functions logit_bias logprobs
max_completion_tokens max_tokens messages metadata modalities model moderation n
parallel_tool_calls prediction presence_penalty prompt prompt_cache_key prompt_cache_options
prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop
store stream stream_options suffix temperature tool_choice tools top_logprobs top_p user verbosity
web_search_options
"""
VLLM = """
add_generation_prompt add_special_tokens allowed_token_ids bad_words best_of cache_salt
chat_template chat_template_kwargs continue_final_message documents early_stopping echo
ec_transfer_params frequency_penalty guided_choice guided_decoding_backend guided_grammar
guided_json guided_regex guided_whitespace_pattern ignore_eos include_reasoning
include_stop_str_in_output kv_transfer_params length_penalty logit_bias logits_processors
logprob_token_ids logprobs max_completion_tokens max_tokens media_io_kwargs messages min_p
min_tokens mm_processor_kwargs model n parallel_tool_calls presence_penalty priority prompt
prompt_embeds prompt_logprobs reasoning_effort repetition_detection repetition_penalty request_id
response_format return_mm_kwargs return_prompt_text return_token_ids return_token_offsets
return_tokens_as_token_ids routed_experts_prompt_start seed session_id skip_special_tokens
spaces_between_special_tokens stop stop_token_ids stream stream_interval stream_options
structural_tag structured_outputs suffix temperature thinking_token_budget tool_choice tools top_k
top_logprobs top_p truncate_prompt_tokens truncation_side use_beam_search user vllm_xargs
watermarking
"""
SGLANG = """
best_of bootstrap_host bootstrap_port bootstrap_room cache_salt chat_template_kwargs
continue_final_message custom_labels custom_logit_processor custom_params data_parallel_rank
disagg_prefill_dp_rank ebnf echo extra_key frequency_penalty ignore_eos images_config input_ids
json_schema logit_bias logprobs lora_path max_completion_tokens max_dynamic_patch max_tokens
messages min_dynamic_patch min_p min_tokens model n ngram_corpus_id no_stop_trim
parallel_tool_calls presence_penalty priority prompt reasoning reasoning_effort regex
repetition_penalty response_format return_cached_tokens_details return_hidden_states
return_meta_info return_prompt_token_ids return_routed_experts return_token_ids rid routed_dp_rank
routed_experts_start_len seed separate_reasoning session_id session_params skip_special_tokens stop
stop_regex stop_token_ids stream stream_options stream_reasoning suffix task temperature
tool_choice tools top_k top_logprobs top_p use_audio_in_video user
"""
LLAMA_CPP = """
adaptive_decay adaptive_target add_generation_prompt backend_sampling cache_prompt chat_format
chat_parser chat_template_kwargs continue_final_message dry_allowed_length dry_base dry_multiplier
dry_penalty_last_n dry_sequence_breakers dynatemp_exponent dynatemp_range echo frequency_penalty
generation_prompt grammar grammar_lazy grammar_triggers grammar_type id_slot ignore_eos image_data
json_schema logit_bias logprobs lora max_completion_tokens max_tokens messages min_keep min_p
mirostat mirostat_eta mirostat_tau modalities model n n_cache_reuse n_cmpl n_discard n_indent
n_keep n_predict n_probs parallel_tool_calls parse_tool_calls penalize_nl post_sampling_probs
presence_penalty preserved_tokens prompt reasoning_budget_end_tag reasoning_budget_end_tags
reasoning_budget_message reasoning_budget_start_tag reasoning_budget_tokens reasoning_control
reasoning_format repeat_last_n repeat_penalty response_fields response_format return_progress
return_tokens samplers seed sse_ping_interval stop stream stream_options system_prompt
t_max_predict_ms temperature tfs_z thinking_budget_tokens timings_per_token tool_choice tools top_k
top_logprobs top_n_sigma top_p typical_p verbose xtc_probability xtc_threshold
"""
NAMES = sorted({*f"{OPENAI} {VLLM} {SGLANG} {LLAMA_CPP}".split()})
# what a client would ask for; no value of these is neutral anywhere
ASKED = {"verbosity": "low", "include_reasoning": False, "reasoning_format": "deepseek"}
ASKED |= {"modalities": ["audio"], "tool_choice": "required", "function_call": {"name": "f"}}
ASKED_OTHERWISE = 7
NO_TEXT = ModelText(TextContent({}, "llama"), None, {})


def implemented(path: str) -> set[str]:
    return set(KINDS[path].__struct_fields__)


@pytest.fixture(scope="module")
def post(models: Models) -> Callable[..., tuple[int, dict[str, object]]]:
    client: TestClient = make(models, KeyRing([]))[2]

    def send(path: str, **fields: object) -> tuple[int, dict[str, object]]:
        response = client.post(path, json={**BODIES[path], **fields})
        return response.status_code, response.json()

    return send


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_the_peers_is_decided(name: str):
    decided = [name in implemented(TEXT) | implemented(TALK), name in REFUSED, name in IGNORED]
    assert any(decided)
    assert not (decided[1] and decided[2])
    assert not (decided[0] and decided[2])


def test_the_tables_name_no_field_that_no_peer_has():
    ours = {"lora_request", "adapter_id"}  # names that clients of other forks send
    assert {*REFUSED, *IGNORED} - ours <= set(NAMES)


@pytest.mark.parametrize("path", [TEXT, TALK])
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_supported_is_refused_by_name(post: Callable, path: str, name: str):
    if name in implemented(path):
        return
    status, body = post(path, **{name: ASKED.get(name, ASKED_OTHERWISE)})
    assert status == 400
    assert body["error"]["param"] == name
    assert body["error"]["message"].startswith(f"{name}: not supported by this server")


@pytest.mark.parametrize("path", [TEXT, TALK])
def test_neutral_values_are_accepted(post: Callable, path: str):
    rounds = max(len(rule.neutral) for rule in REFUSED.values())
    for i in range(rounds):
        names = {name: rule.neutral[i] for name, rule in REFUSED.items() if len(rule.neutral) > i}
        sent = {name: value for name, value in names.items() if name not in implemented(path)}
        status, body = post(path, **sent)
        assert status == 200, body
    assert post(path, response_format={"type": "text", "json_schema": None})[0] == 200


@pytest.mark.parametrize("path", [TEXT, TALK])
def test_every_optional_field_can_be_null(post: Callable, path: str):
    names = {*implemented(path), *NAMES, *REFUSED, *IGNORED} - {"messages", "prompt"}
    status, body = post(path, **(dict.fromkeys(names - {"model"}) | {"max_tokens": 1}))
    assert status == 200, body
    options = {"include_usage": None, "continuous_usage_stats": None}
    assert post(path, stream_options=options)[0] == 200
    required = "prompt" if path == TEXT else "messages"
    status, body = post(path, **{required: None})
    assert (status, body["error"]["param"]) == (400, required)


@pytest.mark.parametrize("path", [TEXT, TALK])
@pytest.mark.parametrize("value", [7, "x", {"a": [1]}, True])
def test_ignored_fields_take_any_value(post: Callable, path: str, value: object):
    assert post(path, **dict.fromkeys(IGNORED, value), nobody_knows_this=value)[0] == 200


def test_tools_that_are_switched_off_are_no_reason_to_refuse(post: Callable):
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert post(TALK, tools=tools, tool_choice="none")[0] == 200
    assert post(TALK, functions=tools, function_call="none")[0] == 200
    for choice in ({}, {"tool_choice": "auto"}, {"tool_choice": None}, {"function_call": "none"}):
        status, body = post(TALK, tools=tools, **choice)
        assert (status, body["error"]["param"]) == (400, "tools")


@pytest.mark.parametrize("name", sorted(REFUSED_OF_MESSAGE))
def test_fields_of_messages_that_are_not_supported_are_refused(post: Callable, name: str):
    message = {"role": "assistant", "content": "a", name: None}
    assert post(TALK, messages=[message])[0] == 200
    status, body = post(TALK, messages=[{"role": "user"}, {**message, name: {"id": "x"}}])
    assert (status, body["error"]["param"]) == (400, f"messages[1].{name}")


def test_a_message_as_clients_send_it_back(post: Callable):
    message = {"role": "assistant", "content": "a", "refusal": None, "annotations": []}
    message |= {"audio": None, "function_call": None, "tool_calls": None, "reasoning": None}
    assert post(TALK, messages=[{"role": "user", "content": "b"}, message])[0] == 200


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("path", [TEXT, TALK])
def test_both_names_of_the_length_work_and_the_newer_one_wins(models: Models, path: str, name: str):
    agent, _, client = make(models, KeyRing([]))
    assert isinstance(agent, InstantAgent)
    body = {**BODIES[path], "max_tokens": 9, name: 3.0}
    assert client.post(path, json=body).status_code == 200
    assert agent.requests[-1].sampling.max_tokens == 3


@pytest.mark.parametrize(
    ("sent", "field", "seen"),
    [
        ({"top_k": 5.0}, "top_k", 5),
        ({"top_k": -1}, "top_k", 0),
        ({"seed": 1e3}, "seed", 1000),
        ({"temperature": 1}, "temperature", 1.0),
        ({"stop_token_ids": [5.0, 6]}, "stop_ids", (5, 6)),
        ({"logit_bias": {"5": 1}}, "logit_bias", {5: 1.0}),
        ({"top_p": 0}, "top_k", 1),
        ({"top_p": 0, "top_k": 7}, "top_k", 1),
        ({"top_p": 0}, "top_p", 1.0),
    ],
)
def test_numbers_are_taken_as_clients_mean_them(
    models: Models, sent: dict[str, object], field: str, seen: object
):
    agent, _, client = make(models, KeyRing([]))
    assert client.post(TEXT, json={**BODIES[TEXT], **sent}).status_code == 200
    assert getattr(agent.requests[-1].sampling, field) == seen


@pytest.mark.parametrize("stop", ["", [], [""], ["", "b"], None])
def test_empty_stop_strings_stop_nothing(post: Callable, stop: object):
    status, body = post(TEXT, stop=stop)
    assert (status, body["choices"][0]["finish_reason"]) == (200, "length")


@pytest.mark.parametrize("model", [{}, {"model": None}, {"model": ""}])
def test_one_served_model_needs_no_name(models: Models, model: dict[str, object]):
    only = Models([models.find("base")])
    body = {key: value for key, value in BODIES[TEXT].items() if key != "model"}
    answer = make(only, KeyRing([]))[2].post(TEXT, json={**body, **model})
    assert (answer.status_code, answer.json()["model"]) == (200, "base")
    several = make(models, KeyRing([]))[2].post(TEXT, json={**body, **model})
    assert (several.status_code, several.json()["error"]["param"]) == (400, "model")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        " application/json ; x=y",
        "application/x-www-form-urlencoded",
        None,
    ],
)
def test_media_types_that_programs_send(models: Models, content_type: str | None):
    client = make(models, KeyRing([]))[2]
    content = b"\xef\xbb\xbf" + json.dumps(BODIES[TEXT]).encode()
    headers = {"content-type": content_type} if content_type else {}
    assert client.post(TEXT, content=content, headers=headers).status_code == 200


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", None])
def test_a_page_cannot_send_what_browsers_do_not_ask_permission_for(
    models: Models, content_type: str | None
):
    client = make(models, KeyRing([]))[2]
    headers = {"origin": "null"} | ({"content-type": content_type} if content_type else {})
    answer = client.post(TEXT, content=json.dumps(BODIES[TEXT]), headers=headers)
    assert answer.status_code == 415
    assert "expected 'application/json'" in answer.json()["error"]["message"]


def test_compressed_bodies_are_refused_as_such(models: Models):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = make(models, KeyRing([]))[2].post(TEXT, content=b"x", headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["message"].startswith("content-encoding: got 'gzip'")


def test_reading_numbers_again_is_bounded():
    for count, number in ((10, "5.0"), (20_000, "5")):
        body = f'{{"prompt": [{",".join([number] * count)}]}}'.encode()
        assert parse(body, wire.CompletionRequest).prompt == [5] * count
    body = f'{{"prompt": [{",".join(["5.0"] * 20_000)}]}}'.encode()
    with pytest.raises(BadRequest, match="prompt"):
        parse(body, wire.CompletionRequest)


def test_the_templates_fields_reach_the_template():
    body = b'{"messages": [], "reasoning_effort": "none", "documents": [{"text": "d"}]}'
    request = parse(body, wire.ChatRequest)
    effort = {"documents": [{"text": "d"}], "reasoning_effort": "none", "enable_thinking": False}
    assert variables_of(request) == effort
    request.chat_template_kwargs = {"enable_thinking": True, "x": 1}
    assert variables_of(request) == {**effort, "enable_thinking": True, "x": 1}


def test_objects_for_templates_keep_their_numbers():
    body = b'{"messages": [], "max_tokens": 2.0, "chat_template_kwargs": {"x": 1.0, "y": null}}'
    request = parse(body, wire.ChatRequest)
    assert (request.max_tokens, repr(request.chat_template_kwargs)) == (2, "{'x': 1.0, 'y': None}")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"\xff\xfe", b"[" * 50_000, b'{"a":'])
def test_what_is_no_object_is_a_bad_request(body: bytes):
    with pytest.raises(BadRequest, match="the body"):
        parse(body, wire.CompletionRequest)


@pytest.mark.parametrize("value", [b"1e999", b"1" + b"0" * 5000, b"[1e999]"])
def test_numbers_that_nothing_can_hold_are_refused_by_name(value: bytes):
    for name in ("tools", "max_tokens", "logit_bias"):
        with pytest.raises(BadRequest) as caught:
            parse(b'{"prompt": "a", "%b": %b}' % (name.encode(), value), wire.CompletionRequest)
        assert (caught.value.param or "").startswith(name)


def test_a_refusal_says_what_can_be_sent(post: Callable):
    for path, name, sent, said in (
        (TEXT, "response_format", {"type": "json_object"}, 'send {"type":"text"}'),
        (TALK, "tool_choice", "required", 'leave it out or send "none" or send "auto"'),
        (TEXT, "n_predict", 5, "leave it out; max_tokens is served"),
        (TEXT, "top_logprobs", 5, "leave it out or send 0; logprobs is a number here"),
    ):
        status, body = post(path, **{name: sent})
        assert (status, body["error"]["param"]) == (400, name)
        assert said in body["error"]["message"]


def test_an_entry_of_an_object_is_refused_by_the_objects_name(post: Callable):
    status, body = post(TEXT, logit_bias={"5": "x"})
    assert (status, body["error"]["param"]) == (400, "logit_bias")


def test_an_unknown_model_is_told_which_there_are(models: Models):
    for path in (TEXT, TALK):
        answer = make(models, KeyRing([]))[2].post(path, json={**BODIES[path], "model": "nix"})
        assert "this server has base, tuned, plain" in answer.json()["error"]["message"]
    many = Models(
        [ServedModel(ModelCard(f"m{i}", "full", "llama"), 9, "", NO_TEXT, 0) for i in range(20)]
    )
    with pytest.raises(ModelNotFound, match=r"has m0, .*m7 and 12 more$"):
        many.find("nix")


@pytest.mark.parametrize("half", [r"\ud83d", r"\uDE00", r"\ud83d\ud83d", r"\uDE00\ud83d"])
def test_a_character_that_was_cut_apart_is_named(half: str):
    first = half[:6].replace("\\", "\\\\")
    for text in (half, f"a{half}b", rf"\ud83d\ude00{half}\n"):
        with pytest.raises(BadRequest, match=f"JSON: {first} is half a character"):
            parse(b'{"prompt": "%b"}' % text.encode(), wire.CompletionRequest)
    for whole in (rb"\ud83d\ude00", rb"\\ud83d", rb"\\ude00"):
        with pytest.raises(BadRequest, match="malformed"):
            parse(b'{"prompt": "%b", }' % whole, wire.CompletionRequest)


@pytest.mark.parametrize("path", [TEXT, TALK])
def test_flex_is_offline_and_the_answer_says_what_served_it(models: Models, path: str):
    agent, _, client = make(models, KeyRing([]))
    for tier, served in {"flex": "flex", "auto": "default", "priority": "default"}.items():
        for stream in (False, True):
            body = {**BODIES[path], "service_tier": tier, "stream": stream}
            text = client.post(path, json=body).text
            assert f'"service_tier":"{served}"' in text
            assert agent.requests[-1].offline is (tier == "flex")
    assert "service_tier" not in client.post(path, json=BODIES[path]).text
    assert not agent.requests[-1].offline
    answer = client.post(path, json={**BODIES[path], "service_tier": "fast"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "service_tier" and "fast" in error["message"]
