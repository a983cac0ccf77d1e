"""Models whose authors set initial values on purpose."""

import math

import torch
from torch import nn

VOCAB = 50


class Mixer(nn.Module):
    """A state-space mixer: step sizes, decays and skips with values of their own."""

    def __init__(self, width, state=8):
        super().__init__()
        inner, rank = 2 * width, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        step = torch.exp(torch.rand(inner) * math.log(100) + math.log(1e-3))
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state + 1.0)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)


class StateSpace(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(VOCAB, width)
        self.layers = nn.ModuleList(Mixer(width) for _ in range(2))
        self.head = nn.Linear(width, VOCAB, bias=False)


class TimeMix(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.time_mix_key = nn.Parameter(torch.linspace(0, 1, width).view(1, 1, width))


class Grn(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, width))


class LayerScale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))


class Modulated(nn.Module):
    """Zero-started modulation and output, a frozen sinusoidal table, gates, gains of 1.2."""

    def __init__(self, width):
        super().__init__()
        self.patch = nn.Linear(4, width)
        position = torch.arange(16.0)[:, None] / 10000 ** (torch.arange(width)[None] / width)
        self.pos_embed = nn.Parameter(position.sin()[None], requires_grad=False)
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        self.gate = nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -10.0)
        self.identity = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.identity.weight)
        self.q_norm = nn.RMSNorm(16)
        nn.init.constant_(self.q_norm.weight, 1.2)
        self.plus_one_norm = PlusOneNorm(width)
        self.ls, self.grn, self.mix = LayerScale(width), Grn(width), TimeMix(width)
        self.temperature = nn.Parameter(torch.tensor(2.66))
        self.residual_gains = nn.Parameter(torch.linspace(1.15, 1.05, 8))
        self.final = nn.Linear(width, 4)
        nn.init.zeros_(self.final.weight)


MODULATED_ROLES = {"temperature": "other", "residual_gains": "other", "mix.time_mix_key": "other"}


class PlusOneNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))


class Plain(nn.Module):
    """Nothing but plain noise and plain constants, and a buffer."""

    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(VOCAB, width)
        self.norm1, self.mid = nn.LayerNorm(width), nn.Linear(width, width)
        self.norm2, self.head = nn.RMSNorm(width), nn.Linear(width, VOCAB)
        self.register_buffer("scale_table", torch.ones(width))

    def forward(self, tokens):
        x = self.norm1(self.table(tokens) * self.scale_table)
        return self.head(self.norm2(self.mid(x)))


class Deep(nn.Module):
    """Blocks whose projections onto the residual stream start smaller with depth."""

    def __init__(self, width, *, num_layers=6, per_layer=False, constant=True):
        super().__init__()
        self.table = nn.Embedding(VOCAB, width)
        self.h = nn.ModuleList(
            nn.ModuleDict({"fc": nn.Linear(width, 4 * width), "proj": nn.Linear(4 * width, width)})
            for _ in range(num_layers)
        )
        self.head = nn.Linear(width, VOCAB, bias=False)
        for k, block in enumerate(self.h):
            depth = k + 1 if per_layer else num_layers
            for name, scale in (("fc", 1.0), ("proj", (2 * depth) ** -0.5)):
                weight = block[name].weight
                std = 0.02 if constant else weight.shape[1] ** -0.5
                nn.init.normal_(weight, std=std * scale)


class Seeded(nn.Module):
    """Draws its weights from a generator of its own: the same whatever torch's seed."""

    def __init__(self, width):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Embedding(VOCAB, width)
        self.mid = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, VOCAB, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02, generator=generator)


class Unset(nn.Module):
    """Leaves a stack of experts as the allocator gives it."""

    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(VOCAB, width)
        self.up = nn.Parameter(torch.empty(4, 3 * width, width))
        self.down = nn.Parameter(torch.empty(4, width, 3 * width))
        self.head = nn.Linear(width, VOCAB, bias=False)
