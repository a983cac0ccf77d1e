"""Roles of models of the library transformers, built from configs."""

from collections import Counter

import pytest

from hptransfer.adopt import infer_roles, param_groups
from hptransfer.errors import ConfigError

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.slow

COMMON = {"bos_token_id": 0, "eos_token_id": 0}


def llama(width, *, kv_heads=2, tied=False):
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 16,
        num_key_value_heads=kv_heads,
        head_dim=16,
        vocab_size=100,
        tie_word_embeddings=tied,
        **COMMON,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2(width, *, num_heads=None, tied=False):
    config = transformers.GPT2Config(
        n_embd=width,
        n_layer=2,
        n_head=num_heads or width // 16,
        n_positions=8,
        vocab_size=100,
        tie_word_embeddings=tied,
        **COMMON,
    )
    return transformers.GPT2LMHeadModel(config)


def counts(table):
    return dict(Counter(entry.role for entry in table))


def test_llama_with_grouped_queries():
    expected = {"embedding": 1, "hidden": 14, "norm": 5, "readout": 1}
    # A fixed number of key and value heads, and one that grows with the queries'.
    for factory in (llama, lambda width: llama(width, kv_heads=width // 32)):
        table = infer_roles(factory, base_width=64, width=128)
        assert counts(table) == expected
        assert (table.head_size, table.base_head_size) == (16, 16)
    assert table["lm_head.weight"].role == "readout"


def test_gpt2_with_transposed_matrices():
    table = infer_roles(gpt2, base_width=64, width=128)
    assert counts(table) == {"embedding": 2, "bias": 13, "hidden": 8, "norm": 5, "readout": 1}
    up = table["transformer.h.0.mlp.c_fc.weight"]
    assert (up.shape, up.fan_in, up.fan_out, up.transposed) == ((128, 512), 128, 512, True)
    groups = param_groups(gpt2(128), roles=table, parameterization="mup", lr=1.0)
    assert [g["lr"] for g in groups] == [1.0, 0.5]


def test_tied_and_growing_heads_are_seen():
    for factory in (llama, gpt2):
        table = infer_roles(lambda w, f=factory: f(w, tied=True), base_width=64, width=128)
        assert counts(table)["tied"] == 1
    fixed = lambda width: gpt2(width, num_heads=2)  # noqa: E731
    table = infer_roles(fixed, base_width=64, width=128)
    assert (table.head_size, table.base_head_size) == (64, 32)
    with pytest.raises(ConfigError, match="attention logits are multiplied by"):
        param_groups(fixed(128), roles=table, parameterization="mup", lr=1.0)


def test_a_router_must_be_told():
    def mixtral(width):
        config = transformers.MixtralConfig(
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=1,
            num_attention_heads=width // 16,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=100,
            num_local_experts=4,
            **COMMON,
        )
        return transformers.MixtralForCausalLM(config)

    with pytest.raises(ConfigError, match=r"'model.layers.0.mlp.gate.weight', shape \(4, 64\)"):
        infer_roles(mixtral, base_width=64, width=128)
    told = {"model.layers.*.mlp.gate.weight": "readout"}
    table = infer_roles(mixtral, base_width=64, width=128, roles=told)
    fans = {
        entry.name.rpartition(".")[2]: (entry.fan_in, entry.fan_out)
        for entry in table
        if len(entry.shape) == 3
    }
    assert fans == {"gate_up_proj": (128, 768), "down_proj": (384, 128)}
    assert (table["model.layers.0.mlp.gate.weight"].fan_in) == 128
