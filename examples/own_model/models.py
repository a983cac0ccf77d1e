"""Models for a study of one's own: a Llama and a Mamba of `transformers`, and an encoder-decoder.

A factory is a function of the width alone; what else it takes stands in ``[model.options]``.
"""

import torch
from torch import Tensor, nn

VOCAB = 512


def make_llama(width: int, *, layers: int = 2, head_size: int = 8) -> nn.Module:
    """Return a Llama of `transformers` with grouped queries and SwiGLU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = width // head_size
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        )
    )


def make_mamba(width: int, *, layers: int = 2) -> nn.Module:
    """Return a Mamba of `transformers`."""
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(
            vocab_size=VOCAB,
            hidden_size=width,
            state_size=4,
            num_hidden_layers=layers,
            time_step_rank=width // 16,
            tie_word_embeddings=False,
        )
    )


class Sorter(nn.Module):
    """An encoder that reads a sequence and a decoder that writes it sorted."""

    def __init__(self, width: int, symbols: int) -> None:
        super().__init__()
        self.source = nn.Embedding(symbols, width)
        self.target = nn.Embedding(symbols, width)
        self.encode = nn.Linear(width, width)
        self.decode = nn.Linear(width, width)
        self.readout = nn.Linear(width, symbols, bias=False)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return logits of the next target symbol, (B, T, symbols)."""
        read = torch.tanh(self.encode(self.source(source))).mean(1, keepdim=True)
        return self.readout(torch.tanh(self.decode(self.target(target)) + read))


def make_sorter(width: int, *, symbols: int = 20) -> nn.Module:
    """Return the encoder and decoder."""
    return Sorter(width, symbols)


def sorter_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean cross-entropy of the sorted sequence, in nats per symbol."""
    target = batch["target"]
    logits = model(batch["source"], target[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
