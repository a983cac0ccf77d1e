"""A rule on Hugging Face models, built from config and trained with ``Trainer``.

python examples/hugging_face.py
"""

import tempfile

from small_gpt import CONTEXT, VOCAB_SIZE, make_batches
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from hptransfer.adopt import guard, infer_roles, init_, param_groups

HEAD_SIZE = 16
LR = 2**-6


def make_llama(width: int) -> nn.Module:
    """Return a small Llama with a readout of its own."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // HEAD_SIZE,
        head_dim=HEAD_SIZE,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def make_gpt2(width: int) -> nn.Module:
    """Return a small GPT-2 with a readout of its own and no dropout."""
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=width,
        n_layer=2,
        n_head=width // HEAD_SIZE,
        n_positions=CONTEXT,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    return GPT2LMHeadModel(config)


def train(factory=make_llama, *, width: int = 64, base_width: int = 32, steps: int = 10) -> Trainer:
    """Train some steps under µP; the trainer's ``state.log_history`` has the losses."""
    base = infer_roles(factory, base_width=base_width, width=width)
    model = factory(width)
    # Tables start at std 1 under the rules; 0.02 is these models' own.
    init_(model, roles=base, parameterization="mup", seed=0, base_std={"embedding": 0.02})
    groups = param_groups(model, roles=base, parameterization="mup", lr=LR, weight_decay=0.01)
    optimizer = AdamW(groups, lr=LR, betas=(0.9, 0.95))
    guard(optimizer)
    rows = [
        {"input_ids": row[:-1], "labels": row[:-1]}
        for batch in make_batches(steps)
        for row in batch
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            max_grad_norm=0.0,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1 - step / steps)),
        )
        trainer.train()
    return trainer


if __name__ == "__main__":
    for make in (make_llama, make_gpt2):
        history = train(make).state.log_history
        print(make.__name__, [row["loss"] for row in history if "loss" in row])
