"""A user's own files, for tests of studies that train a model of one's own."""

from hptransfer.study._plan import Speed
from study.small import TEXT

MODEL = '''
import random
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        past = x.cumsum(1) / torch.arange(1, x.shape[1] + 1).view(-1, 1)
        x = x + self.mix(past)
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self, width, layers=1, dropout=0.0):
        super().__init__()
        self.table = nn.Embedding(300, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(width, 300, bias=False)

    def forward(self, ids):
        x = self.table(ids)
        for block in self.blocks:
            x = self.dropout(block(x))
        return self.readout(x)


def make(width, **options):
    return Model(width, **options)


class Tracking(Model):
    """A buffer that training moves, dropout, and logits in an object."""

    def __init__(self, width, dropout=0.1):
        super().__init__(width, dropout=dropout)
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, ids):
        x = self.dropout(self.blocks[0](self.table(ids)))
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 1)))
        return SimpleNamespace(logits=self.readout(x - self.mean))


def make_tracking(width):
    return Tracking(width)


class Replacing(Tracking):
    """The buffer is bound to another tensor."""

    def forward(self, ids):
        x = self.blocks[0](self.table(ids))
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
        return self.readout(x - self.mean)


def make_replacing(width):
    return Replacing(width)


def make_patched(width):
    """The forward is a function around the model."""
    model = Model(width)
    inner = model.forward
    model.forward = lambda ids: inner(ids)
    return model


def elsewhere_loss(model, batch):
    """The loss of another model's weights."""
    other = torch.zeros(300, requires_grad=True)
    return other.square().sum() + model(batch["tokens"][:, :-1]).detach().mean()


def noisy_loss(model, batch):
    logits = model(batch["tokens"][:, :-1])
    logits = logits + torch.randn_like(logits)
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 1:].flatten())


def numpy_loss(model, batch):
    """Draws from the generators of NumPy and of Python."""
    logits = model(batch["tokens"][:, :-1])
    scale = 1 + 0.1 * np.random.rand() + 0.1 * random.random()
    return nn.functional.cross_entropy(
        scale * logits.flatten(0, 1), batch["tokens"][:, 1:].flatten()
    )


class Turning(Model):
    """Weights in bfloat16, and a complex buffer that turns pairs of channels."""

    def __init__(self, width):
        super().__init__(width)
        self.to(torch.bfloat16)
        angles = torch.outer(torch.arange(16.0), torch.arange(width // 2) / width)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def forward(self, ids):
        x = self.table(ids)
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        x = torch.view_as_real(pairs * self.turns[: ids.shape[1]]).flatten(-2).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.readout(x)


def make_turning(width):
    return Turning(width)


class Branching(Model):
    def forward(self, ids):
        return super().forward(ids) * (1 if ids.sum().item() else 2)


def make_branching(width):
    return Branching(width)


def make_text(width):
    return "a model"


def make_deep(width):
    return Model(width, layers=width // 16)


def make_two(width, depth):
    return Model(width)


class Scaled(Model):
    def __init__(self, width):
        super().__init__(width)
        self.mystery = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, ids):
        return self.readout(self.table(ids) * self.mystery)


def make_scaled(width):
    return Scaled(width)


class Last(Model):
    def forward(self, ids):
        return super().forward(ids)[:, -1]


def make_last(width):
    return Last(width)


class Placed(Model):
    """Has places for eight tokens."""

    def __init__(self, width):
        super().__init__(width)
        self.places = nn.Embedding(8, width)

    def forward(self, ids):
        return self.readout(self.table(ids) + self.places(torch.arange(ids.shape[1])))


def make_placed(width):
    return Placed(width)


CALLS = []


def make_counting(width):
    CALLS.append(width)
    model = Model(width)
    model.extra = nn.Linear(width, len(CALLS) + 1)
    return model


class Pair(nn.Module):
    """An encoder of one sequence and a decoder of another."""

    def __init__(self, width):
        super().__init__()
        self.source, self.target = nn.Embedding(20, width), nn.Embedding(20, width)
        self.encode, self.decode = nn.Linear(width, width), nn.Linear(width, width)
        self.readout = nn.Linear(width, 20, bias=False)

    def forward(self, source, target):
        summary = torch.tanh(self.encode(self.source(source).mean(1, keepdim=True)))
        return self.readout(torch.tanh(self.decode(self.target(target)) + summary))


def make_pair(width):
    return Pair(width)


def pair_loss(model, batch):
    logits = model(batch["source"], batch["target"][:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["target"][:, 1:].flatten())
'''

DATA = """
import numpy as np


def batches(seed, step, split):
    generator = np.random.default_rng([seed, step, split == "val"])
    source = generator.integers(0, 20, (8, 6))
    return {"source": source, "target": np.sort(source, axis=1)}


def keyless(seed, step, split):
    return {"target": np.zeros((4, 6), int)}["source"]


def restless(seed, step, split):
    return {"source": np.random.rand(4, 6)}


def lopsided(seed, step, split):
    return {"source": np.zeros((4, 6), int), "target": np.zeros((3, 6), int)}
"""

STUDY = TEXT.replace('"small"', '"own"').replace(
    "num_layers = 1\nhead_size = 8", 'factory = "my_model.py:make"'
)
TRACKING_STUDY = STUDY.replace(":make", ":make_tracking")

PAIR_STUDY = """\
name = "pair"

[data]
batches = "my_data.py:batches"

[model]
factory = "my_model.py:make_pair"
loss = "my_model.py:pair_loss"

[sweep]
parameterization = ["sp", "mup"]
width = [16, 32]
log2_lr = [-6, -4]
seed = [0]

[train]
batch = 8
steps = 40
eval_batches = 4
precision = "fp32"
"""


def stacking_pays(self, width, count, *, mode, precision, device):
    """In place of `OwnModel._time`: no plan depends on how fast this machine is just now."""
    return Speed(precision=precision, seconds=1 / count, num_stacked=count, mode=mode)


def write_own(folder, study=STUDY):
    """Write the user's files and a study file beside the text; return the study file's path."""
    (folder / "my_model.py").write_text(MODEL, encoding="utf-8")
    (folder / "my_data.py").write_text(DATA, encoding="utf-8")
    path = folder / "own.toml"
    path.write_text(study, encoding="utf-8")
    return path
