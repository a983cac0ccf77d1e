"""The shape of a GPT: everything about it that is not a learned or tuned number."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GPTShape:
    """Sizes of the decoder-only GPT of Kalra & Barkeshli 2026.

    Attributes
    ----------
    width : int
        D, the size of the residual stream.
    num_layers : int
        Number of blocks.
    head_size : int
        H; the number of heads is D / H.
    context : int
        T, the longest sequence, and the number of learned positions.
    vocab_size : int
        V.
    """

    width: int
    num_layers: int
    head_size: int
    context: int
    vocab_size: int

    def __post_init__(self) -> None:
        assert self.width % self.head_size == 0, "the study file's check comes first"

    @property
    def num_heads(self) -> int:
        """N = D / H."""
        return self.width // self.head_size

    @property
    def feed_forward(self) -> int:
        """F = 4·D, the hidden size of the feed-forward layer."""
        return 4 * self.width
