"""config.json as transformers 4 and 5 spell it, compared with how transformers reads it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import transformers

from blockllm.core import LayerFunction
from blockllm.errors import CheckpointError, UnsupportedModel
from blockllm.zoo.families import FAMILIES, ModelPlan, choose_family
from blockllm.zoo.families.names import tensor_name
from blockllm.zoo.settings_reader import SettingsReader
from tests.makers import ARCHITECTURES, SHAPE


class _Missing:
    """A setting that is left out. Tests are named after it, in every process alike."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


def plan(family: str, **config: Any) -> ModelPlan:
    values = {**SHAPE, "model_type": family, "architectures": [ARCHITECTURES[family]], **config}
    values = {name: value for name, value in values.items() if value is not MISSING}
    reader = SettingsReader(values, "config.json")
    return choose_family(reader).plan(reader)


def reference(family: str, **config: Any) -> Any:
    """The same config.json as transformers understands it."""
    values = {name: value for name, value in {**SHAPE, **config}.items() if value is not MISSING}
    kind = getattr(transformers, f"{family.title()}Config")
    settings = kind.from_dict(copy.deepcopy(values))
    settings.standardize_rope_params()  # as every rotary embedding does when it is made
    return settings


def decoder(model: ModelPlan, index: int = 0) -> LayerFunction:
    function = model.layers[index + 1].function
    assert isinstance(function, LayerFunction)
    return function


VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": MISSING, "num_attention_heads": 64, "hidden_size": 128},
    {"head_dim": MISSING},
    {"head_dim": 16},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"rms_norm_eps": 1e-5},
    {"hidden_act": "gelu_pytorch_tanh"},
    {"vocab_size": 101, "intermediate_size": 37, "num_hidden_layers": 1},
    {"rope_theta": 500000.0},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
]


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_tensors_are_those_of_transformers(family: str, config: dict[str, Any]) -> None:
    import torch

    model = plan(family, **config)
    with torch.device("meta"):
        real = getattr(transformers, ARCHITECTURES[family])(reference(family, **config))
    shapes = {
        tensor_name(position, name, len(model.layers) - 2): shape
        for position, layer in enumerate(model.layers)
        for name, shape in layer.shapes.items()
    }
    assert shapes == {name: tuple(value.shape) for name, value in real.state_dict().items()}
    function, settings = decoder(model), real.config
    attention = real.model.layers[0].self_attn
    assert function.head_dim == attention.head_dim
    assert function.num_heads // function.num_kv_heads == attention.num_key_value_groups
    assert function.norm_eps == settings.rms_norm_eps
    assert function.activation == settings.hidden_act
    assert function.rope.theta == settings.rope_parameters["rope_theta"]
    assert model.max_context == settings.max_position_embeddings


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_null_key_value_heads_are_all_heads(family: str) -> None:
    assert decoder(plan(family, num_key_value_heads=None)).num_kv_heads == 4


ROPES: list[dict[str, Any]] = [
    {"rope_scaling": None, "rope_theta": 1e6},
    {"rope_scaling": {"type": "linear", "factor": 2}},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.5}, "rope_theta": 5000.0},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}},
    {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    {"rope_scaling": {"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 7}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "original_max_position_embeddings": 48,
        "rope_theta": 1e6,
    },
    {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 3.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 0.9,
            "beta_fast": 16,
            "beta_slow": 2.0,
            "truncate": False,
        }
    },
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.7}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": None, "truncate": None}},
    {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        "rope_theta": 500000.0,
    },
    {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
    },
]


@pytest.mark.parametrize("config", ROPES, ids=str)
def test_rope_is_read_as_transformers_reads_it(config: dict[str, Any]) -> None:
    rope = decoder(plan("llama", **config)).rope
    expected = reference("llama", **config).rope_parameters
    assert rope.kind == expected["rope_type"]
    assert rope.theta == expected["rope_theta"]
    assert rope.factor == (expected.get("factor") or 1.0)
    if rope.kind in ("yarn", "llama3"):
        assert rope.original_max_position == expected["original_max_position_embeddings"]
    if rope.kind == "dynamic":
        assert rope.original_max_position == SHAPE["max_position_embeddings"]
    if rope.kind == "yarn":
        assert rope.attention_factor == expected.get("attention_factor")
        assert rope.mscale == expected.get("mscale")
        assert rope.mscale_all_dim == expected.get("mscale_all_dim")
        assert rope.beta_fast == (expected.get("beta_fast") or 32)
        assert rope.beta_slow == (expected.get("beta_slow") or 1)
        assert rope.truncate == bool(expected.get("truncate", True))
    if rope.kind == "llama3":
        assert rope.low_freq_factor == expected["low_freq_factor"]
        assert rope.high_freq_factor == expected["high_freq_factor"]


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize(
    ("kind", "scaling", "expected"),
    [
        ("default", {}, 128),
        # Llama 3.1 (the original length times the factor is shorter) and 3.2 (it is longer)
        ("llama3", {"factor": 2.0, **LLAMA3}, 128),
        ("llama3", {"factor": 32.0, **LLAMA3}, 128),
        ("linear", {"factor": 4.0}, 128),
        ("dynamic", {"factor": 2.0}, 256),
        # Qwen's instructions add it to a config whose max_position_embeddings stays
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ("yarn", {"factor": 4.0}, 512),
        ("yarn", {"factor": 8.0, "original_max_position_embeddings": 32}, 256),
        # max_position_embeddings is the stretched length already
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ("yarn", {"factor": 2.0, "original_max_position_embeddings": 32}, 128),
    ],
)
def test_max_context(
    spelling: str, key: str, kind: str, scaling: dict[str, Any], expected: int
) -> None:
    section = {key: kind, "rope_theta": 1e6, **scaling}
    for family in ("llama", "qwen2"):
        assert plan(family, **{spelling: section}).max_context == expected


@pytest.mark.parametrize(("length", "expected"), [(512, 512), (4096, 512), (300, 300), (64, 128)])
def test_max_context_of_linear_models_that_name_their_length(length: int, expected: int) -> None:
    scaling = {"type": "linear", "factor": 4.0}
    model = plan("llama", rope_scaling=scaling, max_sequence_length=length)
    assert model.max_context == expected


def test_max_context_with_yarn_original_length_beside_the_section() -> None:
    scaling = {"rope_type": "yarn", "factor": 8.0}
    model = plan("qwen2", rope_scaling=scaling, original_max_position_embeddings=32)
    assert model.max_context == 256


FULL, SLIDING = "full_attention", "sliding_attention"


MIXED = [SLIDING, FULL, SLIDING, FULL]
USED = {"sliding_window": 8, "use_sliding_window": True}
OLD = ["attention", SLIDING, SLIDING, FULL]  # a name that transformers replaces


@pytest.mark.parametrize(
    ("family", "config", "expected"),
    [
        ("llama", {"sliding_window": None}, [None] * 4),
        ("llama", {"sliding_window": 128}, [None] * 4),
        ("llama", {"layer_types": [FULL] * 4}, [None] * 4),
        ("mistral", {}, [4096] * 4),
        ("mistral", {"sliding_window": None}, [None] * 4),
        ("mistral", {"sliding_window": 8}, [8] * 4),
        ("mistral", {"sliding_window": 8, "layer_types": MIXED}, [8, None, 8, None]),
        ("mistral", {"sliding_window": 8, "layer_types": None}, [8] * 4),
        ("mistral", {"sliding_window": 8, "layer_types": OLD}, [None, 8, 8, None]),
        ("mistral", {"sliding_window": None, "layer_types": [FULL] * 4}, [None] * 4),
        ("mistral", {"layer_types": MIXED}, [4096, None, 4096, None]),
        ("qwen2", {"sliding_window": 8}, [None] * 4),
        ("qwen2", USED, [None] * 4),
        ("qwen2", {**USED, "sliding_window": None, "max_window_layers": 0}, [None] * 4),
        ("qwen2", {**USED, "layer_types": OLD}, [None, 8, 8, None]),
        ("qwen2", {"sliding_window": 8, "layer_types": [FULL] * 4}, [None] * 4),
        ("qwen3", {**USED, "max_window_layers": 1}, [None, 8, 8, 8]),
        ("qwen3", {**USED, "layer_types": MIXED}, [8, None, 8, None]),
    ],
)
def test_windows(family: str, config: dict[str, Any], expected: list[int | None]) -> None:
    model = plan(family, **config)
    assert [decoder(model, index).window for index in range(4)] == expected
    if family == "mistral" and "layer_types" in config:
        assert plan("mistral", model_type="ministral", **config) == model
        family = "ministral"  # as AutoConfig chooses
    settings = reference(family, **config)
    kinds = getattr(settings, "layer_types", None)
    if kinds is not None:
        assert [settings.sliding_window if k == SLIDING else None for k in kinds] == expected
    elif family == "mistral":
        assert [settings.sliding_window] * 4 == expected


@pytest.mark.parametrize(
    ("family", "config", "field"),
    [
        ("llama", {"sliding_window": 8}, "sliding_window"),
        ("llama", {"sliding_window": 8, "layer_types": MIXED}, "layer_types"),
        ("mistral", {"layer_types": [FULL]}, "layer_types"),
        ("mistral", {"layer_types": []}, "layer_types"),
        ("mistral", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ("mistral", {"layer_types": MIXED, "sliding_window": None}, "sliding_window"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("qwen2", {"layer_types": MIXED}, "sliding_window"),
        ("qwen3", {**USED, "layer_types": [FULL]}, "layer_types"),
        ("qwen3", {**USED, "layer_types": [FULL] * 3 + ["linear_attention"]}, "layer_types"),
        ("qwen3", {"layer_types": [SLIDING] * 4}, "sliding_window"),
        ("qwen3", {"layer_types": "full_attention"}, "layer_types"),
    ],
)
def test_windows_that_are_refused(family: str, config: dict[str, Any], field: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {field}"):
        plan(family, **config)


def test_windows_longer_than_the_stretched_context_are_none() -> None:
    scaling = {"type": "yarn", "factor": 4.0}
    assert decoder(plan("llama", sliding_window=512, rope_scaling=scaling)).window is None
    with pytest.raises(CheckpointError, match="sliding_window"):
        plan("llama", sliding_window=128, rope_scaling=scaling)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_architecture_or_model_type_is_enough(family: str) -> None:
    assert len(plan(family, architectures=MISSING).layers) == 6
    assert len(plan(family, model_type=MISSING).layers) == 6


@pytest.mark.parametrize(
    "architectures",
    [
        None, MISSING, [], ["FSDPLlamaForCausalLM"], ["LLaMAForCausalLM"], ["MistralForCausalLM"],
        ["LlamaForCausalLMWithValueHead"], ["PeftModelForCausalLM"], ["OptimizedModule"],
    ],
    ids=str,
)  # fmt: skip
def test_model_type_decides(architectures: Any) -> None:
    assert plan("llama", architectures=architectures) == plan("llama")
    assert plan("qwen2", architectures=architectures) == plan("qwen2")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("LlamaForSequenceClassification", "labels"),
        ("Qwen2ForTokenClassification", "labels"),
        ("LlamaForQuestionAnswering", "labels"),
        ("Qwen2ForRewardModel", "scores"),
        ("LlamaRewardModel", "scores"),
        ("Qwen2ForProcessRewardModel", "scores"),
        ("LlavaForConditionalGeneration", "encoder, or reads images"),
        ("MistralModel", "without its head"),
        ("LlamaBiModel", "encoder"),
        ("LlamaForCausalLMEagle3", "drafts"),
    ],
)
def test_models_that_do_not_continue_text(name: str, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"architectures: {name} .*{reason}"):
        plan("llama", architectures=[name])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "llama, mistral, mini"),
        ({"model_type": "gemma3_text"}, "gemma3_text.*supported: the dense decoders llama"),
        ({"model_type": "phi3"}, "phi3"),
        ({"model_type": "gpt_oss", "num_local_experts": 32}, "gpt_oss', a mixture of experts"),
        ({"model_type": "qwen3_moe", "num_experts": 128}, "mixture of experts"),
        ({"model_type": "mistral3", "text_config": {}, "vision_config": {}}, "more than text"),
        ({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}, "mixtral"),
        ({"architectures": MISSING, "model_type": MISSING}, "nothing"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": MISSING}, "GPT2LMHeadModel"),
        ({"hidden_act": "quick_gelu"}, "quick_gelu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1000.0}}, "alpha"),
        ({"rope_parameters": {FULL: {"rope_theta": 1.5}}}, "layer type"),
        ({"rope_parameters": {"chunked_attention": {"rope_theta": 1.5}}}, "layer type"),
        ({"num_attention_heads": 5, "head_dim": 8, "num_key_value_heads": 2}, "multiple"),
        ({"head_dim": 7}, "even"),
        ({"is_causal": False}, "is_causal: False"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: 50"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attention_multiplier": 0.0078125}, "attention_multiplier"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"logits_scaling": 8.0}, "logits_scaling: 8.0 is not supported .only 1 is"),
        ({"residual_multiplier": 0.22}, "residual_multiplier"),
        ({"attention_chunk_size": 8192}, "attention_chunk_size"),
        ({"no_rope_layers": [1, 0, 1, 1]}, "no_rope_layers"),
    ],
    ids=str,
)
def test_unsupported(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        plan("llama", **config)


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": MISSING},
        {"hidden_size": 0},
        {"hidden_size": -32},
        {"hidden_size": "32"},
        {"hidden_size": True},
        {"hidden_size": 2**63},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 10**80},
        {"vocab_size": 1.5},
        {"vocab_size": [96]},
        {"rms_norm_eps": float("nan")},
        {"rms_norm_eps": float("inf")},
        {"rms_norm_eps": -1.0},
        {"rms_norm_eps": 10**400},
        {"rope_theta": float("inf")},
        {"rope_theta": 1.0},
        {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": {"type": "linear", "factor": 0}},
        {"rope_scaling": {"type": "linear", "factor": "2"}},
        {"rope_scaling": [1]},
        {"rope_scaling": {"type": 3}},
        {
            "rope_scaling": {
                "type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 4.0,
            }
        },
        {"attention_bias": "yes"},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": [1]},
        {"model_type": 1},
        {"tie_word_embeddings": 1},
    ],
    ids=str,
)
def test_wrong_values(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        plan("llama", **config)


@pytest.mark.parametrize(
    "config",
    [
        {"attn_logit_softcapping": None, "final_logit_softcapping": 0.0, "is_causal": True},
        {"embedding_multiplier": 1.0, "logits_scaling": 1, "no_rope_layers": []},
        {"pretraining_tp": 8, "attention_dropout": 0.1, "initializer_range": 0.5},
        {"partial_rotary_factor": 1.0, "use_mrope": False, "torch_dtype": "bfloat16"},
        {"max_window_layers": 2, "use_sliding_window": False},
    ],
    ids=str,
)
def test_settings_that_change_nothing(config: dict[str, Any]) -> None:
    assert plan("llama", **config) == plan("llama")


def test_remote_code_is_not_asked_for() -> None:
    assert len(plan("llama", auto_map={"AutoModel": "evil.py"}).layers) == 6


def test_families_have_one_architecture_each() -> None:
    assert {f.name: f.architecture for f in FAMILIES.values()} == ARCHITECTURES
    assert FAMILIES["ministral"] is FAMILIES["mistral"]
