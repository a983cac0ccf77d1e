"""Put a rule to use on 31 library architectures: roles, groups, init, coordinate check.

Every model is built from a configuration of the library transformers, untrained. For each: how
many rounds of ``roles=`` its roles take when every message is pasted as printed; whether the
groups' learning rates are µP's by hand; the first loss after ``init_`` beside the model's own and
ln V; what ``init_`` would have lost that the model's author set; and the coordinate check under
``mup`` and ``sp``.

    python benchmarks/zoo.py [NAME …] [--no-check] [--json FILE]
"""

import argparse
import ast
import json
import logging
import math
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hptransfer.adopt import (
    InitReport,
    RoleTable,
    coordinate_check,
    infer_roles,
    init_,
    param_groups,
    rule_optimizer,
)
from hptransfer.errors import ConfigError

VOCAB, HEAD, LAYERS = 96, 16, 2
BASE_WIDTH, WIDTH, WIDTHS = 64, 256, (64, 128, 256, 512)
LR, STEPS, SEEDS = 2**-9, 4, (0, 1)

COMMON = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
UNTIED = {"tie_word_embeddings": False}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def decoder(width: int, **changes: Any) -> dict[str, Any]:
    """Return the settings that most decoders share."""
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": width // HEAD,
        "max_position_embeddings": 64,
        **COMMON,
        **changes,
    }


def encoder(width: int, **changes: Any) -> dict[str, Any]:
    """Return the settings that most encoders share."""
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": width // HEAD,
        **changes,
    }


def t5(width: int, **changes: Any) -> dict[str, Any]:
    """Return T5's settings."""
    return {
        "vocab_size": VOCAB,
        "d_model": width,
        "d_kv": HEAD,
        "d_ff": 2 * width,
        "num_layers": LAYERS,
        "num_decoder_layers": LAYERS,
        "num_heads": width // HEAD,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        **changes,
    }


SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
KV = {"num_key_value_heads": 2}
IMAGE = {"image_size": 16, "patch_size": 4, "num_labels": 10}

#: By name: class of the model, class of its configuration, and the settings at a width.
MODELS: dict[str, tuple[str, str, Any]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", lambda w: decoder(w, **KV, **UNTIED)),
    "llama_tied": (
        "LlamaForCausalLM", "LlamaConfig", lambda w: decoder(w, **KV, tie_word_embeddings=True),
    ),
    "llama_fixed_heads": (
        "LlamaForCausalLM", "LlamaConfig",
        lambda w: decoder(w, **KV, **UNTIED, num_attention_heads=4),
    ),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", lambda w: decoder(w, **KV, **UNTIED)),
    "qwen3": (
        "Qwen3ForCausalLM", "Qwen3Config", lambda w: decoder(w, **KV, **UNTIED, head_dim=HEAD),
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", lambda w: decoder(w, **KV, **UNTIED)),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", lambda w: decoder(w, **UNTIED)),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", lambda w: decoder(w, **KV, head_dim=HEAD)),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", lambda w: decoder(w, **KV, head_dim=HEAD)),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", lambda w: decoder(w, **UNTIED)),
    "mixtral": (
        "MixtralForCausalLM", "MixtralConfig",
        lambda w: decoder(w, **KV, **UNTIED, num_local_experts=4),
    ),
    "olmoe": (
        "OlmoeForCausalLM", "OlmoeConfig",
        lambda w: decoder(w, **UNTIED, intermediate_size=w, num_experts=8, num_experts_per_tok=2),
    ),
    "olmoe_fine": (
        "OlmoeForCausalLM", "OlmoeConfig",
        lambda w: decoder(
            w, **UNTIED, intermediate_size=w // 2, num_experts=8, num_experts_per_tok=2
        ),
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig",
        lambda w: decoder(
            w, **KV, **UNTIED, head_dim=HEAD, moe_intermediate_size=w // 2, num_experts=8,
            num_experts_per_tok=2,
        ),
    ),
    "gpt_oss": (
        "GptOssForCausalLM", "GptOssConfig",
        lambda w: decoder(
            w, **KV, **UNTIED, head_dim=HEAD, num_local_experts=4, num_experts_per_tok=2
        ),
    ),
    "deepseek": (
        "DeepseekV3ForCausalLM", "DeepseekV3Config",
        lambda w: decoder(
            w, **UNTIED, num_key_value_heads=w // HEAD, moe_intermediate_size=w,
            n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1,
            n_shared_experts=1, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=24,
            qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
        ),
    ),
    "mamba": (
        "MambaForCausalLM", "MambaConfig",
        lambda w: {
            "vocab_size": VOCAB, "hidden_size": w, "state_size": 8, "num_hidden_layers": LAYERS,
            "time_step_rank": math.ceil(w / 16), "use_cache": False, **UNTIED,
        },
    ),
    "mamba2": (
        "Mamba2ForCausalLM", "Mamba2Config",
        lambda w: {
            "vocab_size": VOCAB, "hidden_size": w, "state_size": 8, "num_hidden_layers": LAYERS,
            "num_heads": 2 * w // 16, "head_dim": 16, "n_groups": 1, "chunk_size": 8,
            "use_cache": False, **UNTIED,
        },
    ),
    "rwkv": (
        "RwkvForCausalLM", "RwkvConfig",
        lambda w: {
            "vocab_size": VOCAB, "hidden_size": w, "attention_hidden_size": w,
            "intermediate_size": 4 * w, "num_hidden_layers": LAYERS, "context_length": 64, **UNTIED,
        },
    ),
    "falcon_h1": (
        "FalconH1ForCausalLM", "FalconH1Config",
        lambda w: decoder(
            w, **KV, **UNTIED, mamba_d_ssm=2 * w, mamba_n_heads=2 * w // 16, mamba_d_head=16,
            mamba_d_state=8, mamba_n_groups=1,
        ),
    ),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        lambda w: t5(w, feed_forward_proj="gated-gelu", **UNTIED),
    ),
    "t5_tied": ("T5ForConditionalGeneration", "T5Config", lambda w: t5(w)),
    "t5_fixed_heads": (
        "T5ForConditionalGeneration", "T5Config",
        lambda w: t5(w, feed_forward_proj="gated-gelu", num_heads=4, **UNTIED),
    ),
    "bert": (
        "BertForMaskedLM", "BertConfig",
        lambda w: encoder(w, vocab_size=VOCAB, max_position_embeddings=64, **NO_DROPOUT),
    ),
    "bert_untied": (
        "BertForMaskedLM", "BertConfig",
        lambda w: encoder(w, vocab_size=VOCAB, max_position_embeddings=64, **NO_DROPOUT, **UNTIED),
    ),
    "modernbert": (
        "ModernBertForMaskedLM", "ModernBertConfig",
        lambda w: decoder(w, pad_token_id=0, attn_implementation="sdpa", **UNTIED),
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", lambda w: encoder(w, **IMAGE, **NO_DROPOUT)),
    "dinov2": (
        "Dinov2ForImageClassification", "Dinov2Config",
        lambda w: {
            "hidden_size": w, "mlp_ratio": 2, "num_hidden_layers": LAYERS,
            "num_attention_heads": w // HEAD, "layerscale_value": 1e-5, **IMAGE,
        },
    ),
    "convnext2": (
        "ConvNextV2ForImageClassification", "ConvNextV2Config",
        lambda w: {
            "hidden_sizes": [w // 2, w], "depths": [1, 1], "num_stages": 2, **IMAGE,
            "patch_size": 2,
        },
    ),
    "clip": (
        "CLIPModel", "CLIPConfig",
        lambda w: {
            "text_config": encoder(
                w, vocab_size=VOCAB, max_position_embeddings=20, eos_token_id=0, bos_token_id=1,
                pad_token_id=2,
            ),
            "vision_config": encoder(w, image_size=16, patch_size=4),
            "projection_dim": 32,
        },
    ),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        lambda w: {
            "n_embd": w, "n_layer": LAYERS, "n_head": w // HEAD, "n_positions": 64,
            "vocab_size": VOCAB, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
            "bos_token_id": 0, "eos_token_id": 0, **UNTIED,
        },
    ),
    "bloom": (
        "BloomForCausalLM", "BloomConfig",
        lambda w: {
            "vocab_size": VOCAB, "hidden_size": w, "n_layer": LAYERS, "n_head": w // HEAD,
            **UNTIED, **SPECIAL,
        },
    ),
    "falcon_mqa": (
        "FalconForCausalLM", "FalconConfig",
        lambda w: {
            "vocab_size": VOCAB, "hidden_size": w, "num_hidden_layers": LAYERS,
            "num_attention_heads": 4, "multi_query": True, "new_decoder_architecture": False,
            "parallel_attn": True, "bias": False, "bos_token_id": 0, "eos_token_id": 0, **UNTIED,
        },
    ),
    "nanochat": (
        "NanoChatForCausalLM", "NanoChatConfig",
        lambda w: decoder(w, num_key_value_heads=w // HEAD, **UNTIED),
    ),
    "whisper": (
        "WhisperForConditionalGeneration", "WhisperConfig",
        lambda w: {
            "vocab_size": VOCAB, "d_model": w, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
            "encoder_attention_heads": w // HEAD, "decoder_attention_heads": w // HEAD,
            "encoder_ffn_dim": 2 * w, "decoder_ffn_dim": 2 * w, "num_mel_bins": 8,
            "max_source_positions": 16, "max_target_positions": 32, "decoder_start_token_id": 1,
            "suppress_tokens": None, "begin_suppress_tokens": None, "dropout": 0.0, **UNTIED,
            **SPECIAL,
        },
    ),
    "xlstm": (
        "xLSTMForCausalLM", "xLSTMConfig",
        lambda w: {
            "vocab_size": VOCAB, "hidden_size": w, "num_hidden_layers": LAYERS,
            "num_heads": w // 32, "chunk_size": 8,
            "use_cache": False, **UNTIED,  # a cache's states are changed in place
        },
    ),
    "xlstm_fixed_heads": (
        "xLSTMForCausalLM", "xLSTMConfig",
        lambda w: {
            "vocab_size": VOCAB, "hidden_size": w, "num_hidden_layers": LAYERS, "num_heads": 2,
            "chunk_size": 8, "use_cache": False, **UNTIED,
        },
    ),
    "granite": (
        "GraniteForCausalLM", "GraniteConfig",
        lambda w: decoder(w, **KV, tie_word_embeddings=True, logits_scaling=w / BASE_WIDTH),
    ),
    "cohere": (
        "CohereForCausalLM", "CohereConfig",
        lambda w: decoder(w, **KV, tie_word_embeddings=True, logit_scale=BASE_WIDTH / w),
    ),
}  # fmt: skip


#: Models whose configuration scales their logits by 1/m.
SCALES_LOGITS = ("granite", "cohere")

#: Query projections that absorb the attention scale, of models that have no place for it.
QUERY = {"xlstm_fixed_heads": "*.mlstm_layer.q.weight"}


class Factory:
    """From a width to one of the models.

    With ``scale_logits`` the model does what µP asks of a tied table: the states that it multiplies
    are scaled by 1/m, and a multiplier of its own on the table stays what it is at the base width.
    With ``scale_attention`` its attention scales go as 1/H: a number that its modules hold, or,
    in Falcon, which has none, what its queries are multiplied by.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.scale_logits = False
        self.scale_attention = False

    def __call__(self, width: int) -> nn.Module:
        """Build the model."""
        import transformers

        transformers.logging.set_verbosity_error()
        model, config, settings = MODELS[self.name]
        made: nn.Module = getattr(transformers, model)(
            getattr(transformers, config)(**settings(width))
        )
        if self.scale_logits and self.name not in SCALES_LOGITS:
            made.get_output_embeddings().register_forward_pre_hook(
                lambda module, args: (args[0] * BASE_WIDTH / width,)
            )
            for module in made.modules():  # Gemma multiplies its table by √width
                if isinstance(scale := getattr(module, "embed_scale", None), torch.Tensor):
                    scale.fill_(BASE_WIDTH**0.5)
        if self.scale_attention:
            for module in made.modules():
                if isinstance(getattr(module, "scaling", None), float):
                    module.scaling *= (BASE_WIDTH / width) ** 0.5
                elif hasattr(module, "_split_heads"):
                    scale_queries(module, (BASE_WIDTH / width) ** 0.5)
        return made


def scale_queries(module: Any, factor: float) -> None:
    """Multiply the queries that an attention module takes from its fused projection."""
    split = module._split_heads

    def split_and_scale(fused: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value = split(fused)
        return factor * query, key, value

    module._split_heads = split_and_scale


def make_batches(name: str, count: int = STEPS) -> Iterator[dict[str, Any]]:
    """Yield batches of sequences that can be learned, as the model's keywords."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        start = torch.randint(VOCAB - 3, (4, 1), generator=generator)
        step = torch.randint(1, 4, (4, 1), generator=generator)
        tokens = 3 + (start + step * torch.arange(16)) % (VOCAB - 3)
        image = torch.randn(4, 3, 16, 16, generator=generator)
        if name == "whisper":
            sound = torch.randn(4, 8, 32, generator=generator)
            yield {"input_features": sound, "labels": tokens}
        elif name in ("vit", "dinov2", "convnext2"):
            yield {"pixel_values": image, "labels": torch.arange(4)}
        elif name == "clip":
            yield {"input_ids": tokens, "pixel_values": image, "return_loss": True}
        else:
            yield {"input_ids": tokens, "labels": tokens}


def find_roles(factory: Factory) -> tuple[RoleTable, dict[str, str], int]:
    """Paste what each message proposes until the roles are known; return the rounds too."""
    told: dict[str, str] = {}
    for rounds in range(4):
        try:
            return (
                infer_roles(factory, base_width=BASE_WIDTH, width=WIDTH, roles=told),
                told,
                rounds,
            )
        except ConfigError as error:
            pasted = re.search(r"roles=(\{.*?\})", str(error))
            if pasted is None:
                raise
            told |= ast.literal_eval(pasted[1])
    raise ConfigError(f"{factory.name}: roles still unclear after 3 rounds")


def find_applied(model: nn.Module, table: RoleTable) -> set[str]:
    """Return what the model would have to do itself under µP."""
    applied: set[str] = set()
    while True:
        try:
            param_groups(
                model,
                roles=table,
                parameterization="mup",
                lr=1.0,
                applied=applied,
                skip_frozen=True,
            )
        except ConfigError as error:
            word = re.search(r'applied=\{"(\w+)"\}', str(error))
            if word is None or word[1] in applied:
                raise
            applied.add(word[1])
        else:
            return applied


def compare_lrs(
    factory: Factory, model: nn.Module, table: RoleTable, applied: set[str]
) -> list[str]:
    """Return the parameters whose learning rate is not µP's by hand: base over own fan-in."""
    groups = param_groups(
        model, roles=table, parameterization="mup", lr=1.0, applied=applied, skip_frozen=True
    )
    lrs = {id(p): group["lr"] for group in groups for p in group["params"]}
    small = dict(factory(BASE_WIDTH).named_parameters())
    odd = []
    for name, parameter in model.named_parameters():
        if id(parameter) not in lrs:
            continue
        shape, base = parameter.shape, small[name].shape
        module = model.get_submodule(name.rpartition(".")[0])
        kind = type(module).__name__
        ndim = len(shape)
        fan_in = {"Conv1D": 0}.get(kind, 1 if ndim == 2 or "Conv" in kind else ndim - 1)
        if "GptOss" in kind and ndim == 3:
            fan_in = 1
        is_table = isinstance(module, nn.Embedding) or all(size == 1 for size in shape[:-1])
        is_matrix = not (is_table or name.endswith("bias") or table[name].role == "other")
        grows = is_matrix and shape[0] != 1 and shape[fan_in] != base[fan_in]
        wanted = base[fan_in] / shape[fan_in] if grows else 1.0
        if abs(lrs[id(parameter)] / wanted - 1) > 1e-6:
            odd.append(f"{name}: {lrs[id(parameter)]:g}, by hand {wanted:g}")
    return odd


def find_lost(own: Mapping[str, torch.Tensor], model: nn.Module, report: InitReport) -> list[str]:
    """Return what the author set that ``init_`` wrote over: constants, shapes, frozen values."""
    lost = []
    for name, parameter in model.named_parameters():
        before, after = own[name].float(), parameter.detach().float()
        if torch.equal(before, after):
            continue
        std = float(before.std(correction=0))
        constant = std < 1e-9
        value = float(before.flatten()[0])
        shifted = abs(float(before.mean())) > 0.3 * std and before.numel() > 16
        if (
            not parameter.requires_grad
            or (constant and value != 0.0)
            or (not constant and shifted)
            or (constant and float(after.abs().max()) > 0)
        ):
            lost.append(name)
    return lost


def compute_loss(model: nn.Module, batch: Mapping[str, Any]) -> float:
    """Return the loss of a batch."""
    with torch.no_grad():
        return float(model.eval()(**batch).loss)


def run(name: str, *, check: bool) -> dict[str, Any]:
    """Put the rules to use on one model and return what came of it."""
    start = time.process_time()
    factory = Factory(name)
    table, told, rounds = find_roles(factory)
    torch.manual_seed(0)
    model = factory(WIDTH)
    own = {n: p.detach().clone() for n, p in model.named_parameters()}
    applied = find_applied(model, table)
    odd = compare_lrs(factory, model, table, applied)
    factory.scale_logits = "readout_multiplier" in applied
    factory.scale_attention = "attention_scale" in applied
    if factory.scale_logits or factory.scale_attention:
        torch.manual_seed(0)
        model = factory(WIDTH)
    batch = next(make_batches(name))
    first = compute_loss(model, batch)
    report = init_(
        model, roles=table, parameterization="mup", seed=0, applied=applied, verbose=False
    )
    after = compute_loss(model, batch)
    classes = 10 if name in ("vit", "dinov2", "convnext2") else 4 if name == "clip" else VOCAB
    row: dict[str, Any] = {
        "model": name,
        "rounds": rounds,
        "told": told,
        "applied": sorted(applied),
        "odd_lrs": odd,
        "own_loss": first,
        "init_loss": after,
        "ln_v": math.log(classes),
        "lost": find_lost(own, model, report),
        "kept": {
            kind: len(report.find(kind))
            for kind in ("zeros", "constants", "values", "frozen", "depth")
            if report.find(kind)
        },
    }
    query = QUERY.get(name, ())
    for rule in ("mup", "sp") if check else ():
        try:
            result = coordinate_check(
                factory,
                WIDTHS,
                batches=list(make_batches(name)),
                optimizer=rule_optimizer(
                    factory,
                    base_width=BASE_WIDTH,
                    parameterization=rule,
                    lr=LR,
                    roles=told,
                    applied=applied - {"attention_scale"} if query else applied,
                    query=query,
                ),
                steps=STEPS,
                seeds=SEEDS,
                name=rule,
            )
        except ConfigError as error:
            row[rule] = {"refused": str(error)}
            continue
        except RuntimeError as error:  # a kernel of the library's own
            row[rule] = {"refused": f"RuntimeError: {error}"}
            continue
        failed = [m.name for m in result.modules if not m.passed]
        row[rule] = {
            "passed": result.passed,
            "failed": {n: round(result[n].judged_slope.value or 0, 2) for n in failed},
            "unseen": len(result.unseen),
            "unjudged": len(result.unjudged),
        }
    row["cpu_seconds"] = time.process_time() - start
    return row


def say(row: Mapping[str, Any]) -> str:
    """Return a model's line of the table."""
    near = min(abs(row["init_loss"] - row[key]) for key in ("own_loss", "ln_v"))
    kept = ", ".join(f"{n} {kind}" for kind, n in row["kept"].items()) or "–"

    def verdict(rule: str) -> str:
        each = row.get(rule)
        if each is None:
            return ""
        if "refused" in each:
            return "refused"
        if each["passed"]:
            return "pass"
        return "FAIL " + ", ".join(each["failed"])[:60]

    return (
        f"| {row['model']} | {row['rounds']} | {'equal' if not row['odd_lrs'] else row['odd_lrs']} "
        f"| {row['own_loss']:.2f} | {row['init_loss']:.2f} | {near:.2f} | {row['lost'] or '–'} "
        f"| {kept} | {verdict('mup')} | {verdict('sp')} |"
    )


def main() -> None:
    """Run the models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--no-check", action="store_true", help="leave the coordinate checks out")
    parser.add_argument("--json", type=Path, help="write everything here too")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print("| model | rounds | lrs as µP by hand | own loss | after init_ | from own or ln V | lost "
          "| kept | check mup | check sp |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for name in args.names or MODELS:
        try:
            rows.append(run(name, check=not args.no_check))
        except ConfigError as error:
            print(f"| {name} | {error} |", flush=True)
            continue
        print(say(rows[-1]), flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    sys.exit(0)


if __name__ == "__main__":
    main()
