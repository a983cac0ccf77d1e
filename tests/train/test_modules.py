import pytest
import torch
from torch import nn

from hptransfer.train._modules import (
    ModuleError,
    StackedModule,
    language_model_loss,
    why_not_stacked,
)

K, B, T, V = 3, 2, 6, 11


class Model(nn.Module):
    """A causal language model with what real ones have: a padding row, ties, buffers, dropout."""

    def __init__(
        self, *, tied=False, padding=None, dropout=0.0, norm=False, frozen=False, spin=False,
        held=False, sparse=False,
    ):  # fmt: skip
        super().__init__()
        self.table = nn.Embedding(V, 8, padding_idx=padding, sparse=sparse)
        self.mix = nn.GRU(8, 8, batch_first=True) if norm is None else nn.Linear(8, 8)
        self.register_buffer("scale", torch.rand(8))
        self.norm = nn.BatchNorm1d(8) if norm else None
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(8, V, bias=False)
        if tied:
            self.readout.weight = self.table.weight
        if frozen:
            self.mix.requires_grad_(False)
        self.spin = nn.Parameter(torch.randn(8, dtype=torch.cdouble)) if spin else None
        if held:  # a gain, whose product with the direction stands in a plain attribute
            with pytest.warns(FutureWarning):
                nn.utils.weight_norm(self.mix)
            self.seen = [self.mix.weight.sum()]

    def forward(self, ids):
        x = self.table(ids)
        x = torch.tanh(self.mix(x)) * self.scale
        if self.spin is not None:
            x = (x * self.spin).real + (x * self.spin).abs()
        if self.norm is not None:
            x = self.norm(x.flatten(0, 1)).view_as(x)
        return self.readout(self.dropout(x))


def make_models(**options):
    models = []
    for k in range(K):
        torch.manual_seed(k)
        models.append(Model(**options).double())
    return models


def make_batch():
    return {"tokens": torch.randint(V, (K, B, T + 1), generator=torch.Generator().manual_seed(7))}


KINDS = [
    {},
    {"tied": True},
    {"padding": 3},
    {"tied": True, "padding": 3},
    {"norm": True},
    {"frozen": True},
    {"spin": True},
    {"held": True},
    {"sparse": True},
]


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("options", KINDS)
def test_losses_gradients_and_buffers_are_those_of_the_models_themselves(options, one_by_one):
    models, batch = make_models(**options), make_batch()
    stack = StackedModule(models, one_by_one=one_by_one)
    losses = stack.compute_losses(batch)
    grads = torch.autograd.grad(losses.sum(), list(stack.parameters.values()))
    for k, model in enumerate(models):
        logits = model(batch["tokens"][k, :, :-1])
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["tokens"][k, :, 1:].flatten()
        )
        loss.backward()
        assert losses[k].item() == pytest.approx(loss.item(), rel=1e-12)
        own = dict(model.named_parameters())
        assert list(stack.parameters) == [name for name, p in own.items() if p.requires_grad]
        for name, grad in zip(stack.parameters, grads, strict=True):
            own_grad = own[name].grad
            if own_grad.is_sparse:
                own_grad = own_grad.to_dense()
            if own_grad.is_complex():  # trained as its parts, as torch's optimizers do
                own_grad = torch.view_as_real(own_grad)
            torch.testing.assert_close(grad[k], own_grad, rtol=1e-9, atol=1e-12)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(stack.constants[name][k], buffer)


def test_a_padding_row_keeps_a_gradient_of_zero_in_every_trial():
    models = make_models(padding=3)
    batch = {"tokens": torch.full((K, B, T + 1), 3)}
    stack = StackedModule(models)
    (grad,) = torch.autograd.grad(
        stack.compute_losses(batch).sum(), [stack.parameters["table.weight"]]
    )
    assert torch.all(grad == 0)


def test_evaluation_has_no_dropout_and_changes_no_buffer():
    stack = StackedModule(make_models(dropout=0.5, norm=True))
    batch = make_batch()
    stack.compute_losses(batch)
    before = {name: tensor.clone() for name, tensor in stack.constants.items()}
    first = stack.compute_losses(batch, training=False)
    assert torch.equal(first, stack.compute_losses(batch, training=False))
    assert all(torch.equal(before[name], stack.constants[name]) for name in before)
    assert not torch.equal(stack.compute_losses(batch), stack.compute_losses(batch))


class Rotating(nn.Module):
    """Attention whose queries and keys come in fp32, as from rotary tables, and values do not."""

    def __init__(self, mask=None):
        super().__init__()
        self.mask = mask
        self.table, self.mix = nn.Embedding(V, 16), nn.Linear(16, 48)
        self.readout = nn.Linear(16, V)

    def forward(self, ids):
        q, k, v = self.mix(self.table(ids)).unflatten(-1, (2, 24)).transpose(-2, -3).chunk(3, -1)
        q, k = (each * torch.linspace(0.5, 1.5, 8) for each in (q, k))
        if self.mask is None:
            x = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # one that all trials and sequences share
            mask = torch.ones(T, T, dtype=torch.bool).tril()
            mask = mask if self.mask == "bool" else torch.where(mask, 0.0, -torch.inf)
            x = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        return self.readout(x.transpose(-2, -3).flatten(-2))


@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("training", [True, False])
def test_attention_takes_the_low_precision_stacked_as_it_does_single(training, mask):
    torch.manual_seed(0)
    models, batch = [Rotating(mask) for _ in range(K)], make_batch()
    single, stacked = (
        StackedModule(models, compute_dtype=torch.bfloat16, one_by_one=each)
        for each in (True, False)
    )
    losses = [each.compute_losses(batch, training=training) for each in (single, stacked)]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)
    assert why_not_stacked(
        models, language_model_loss, batch, compute_dtype=torch.bfloat16
    ) == ""  # fmt: skip


def test_dropout_differs_between_trials():
    models = make_models(dropout=0.5)
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    tokens = make_batch()["tokens"][:1].expand(K, -1, -1)
    losses = StackedModule(models).compute_losses({"tokens": tokens})
    assert len(set(losses.tolist())) == K


def test_a_loss_of_ones_own_and_batches_of_several_arrays():
    models = [nn.Linear(4, 2).double() for _ in range(K)]
    x, y = torch.randn(K, 5, 4).double(), torch.randn(K, 5, 2).double()

    def loss(model, batch):
        return ((model(batch["x"]) - batch["y"]) ** 2).mean()

    found = StackedModule(models, loss).compute_losses({"x": x, "y": y})
    expected = [loss(model, {"x": x[k], "y": y[k]}) for k, model in enumerate(models)]
    torch.testing.assert_close(found, torch.stack(expected))
    assert why_not_stacked(models, loss, {"x": x, "y": y}) == ""


class DataDependent(Model):
    def forward(self, ids):
        return super().forward(ids) * (2 if ids.sum().item() > 0 else 1)


def test_why_not_stacked_names_what_vmap_cannot():
    torch.manual_seed(0)
    models = [DataDependent() for _ in range(K)]
    why = why_not_stacked(models, language_model_loss, make_batch())
    assert "vmap" in why
    assert "\n" not in why
    assert StackedModule(models, one_by_one=True).compute_losses(make_batch()).shape == (K,)


class WrongUnderVmap(torch.autograd.Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(x):
        return x * 1.0

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad

    @staticmethod
    def vmap(info, in_dims, x):
        return x * 1.01, in_dims[0]


class Wrong(Model):
    def forward(self, ids):
        return WrongUnderVmap.apply(super().forward(ids))


def test_why_not_stacked_sees_numbers_that_differ():
    torch.manual_seed(0)
    why = why_not_stacked([Wrong() for _ in range(K)], language_model_loss, make_batch())
    assert why.startswith("stacked and single losses differ by")


@pytest.mark.parametrize(
    ("forward", "found"),
    [
        (lambda self, ids: Model.forward(self, ids)[:, -1], "returns (2, 11)"),
        (lambda self, ids: {"scores": Model.forward(self, ids)}, "returns dict"),
    ],
)
def test_a_model_that_returns_no_logits_is_refused(forward, found):
    kind = type("Odd", (Model,), {"forward": forward})
    with pytest.raises(ModuleError, match=r"expected logits of shape") as caught:
        StackedModule([kind() for _ in range(K)]).compute_losses(make_batch())
    assert found in str(caught.value)


def make_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def make_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=V, n_embd=32, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def make_mamba():
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(
            vocab_size=V, hidden_size=32, state_size=4, num_hidden_layers=2, pad_token_id=0,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def make_olmoe():
    from transformers import OlmoeConfig, OlmoeForCausalLM

    return OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=V, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
            max_position_embeddings=16, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_llama, make_gpt2, make_mamba, make_olmoe])
def test_models_of_transformers_stack(make):
    """Ten AdamW steps of four stacked models in fp32 give each one's losses within 1e-5."""
    pytest.importorskip("transformers")
    num_trials, num_steps = 4, 10
    models = []
    for k in range(num_trials):
        torch.manual_seed(k)
        models.append(make())
    generator = torch.Generator().manual_seed(11)
    tokens = torch.randint(V, (num_steps, num_trials, 4, 13), generator=generator)
    first = {"tokens": tokens[0]}
    assert why_not_stacked(models, language_model_loss, first, compute_dtype=torch.bfloat16) == ""
    stack = StackedModule(models)
    optimizer = torch.optim.AdamW(stack.parameters.values(), lr=1e-3)
    found = []
    for step in range(num_steps):
        losses = stack.compute_losses({"tokens": tokens[step]})
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        found.append(losses.detach())
    for k, model in enumerate(models):
        single = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(num_steps):
            ids = tokens[step, k]
            logits = model(ids[:, :-1], use_cache=False).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            single.zero_grad()
            loss.backward()
            single.step()
            assert found[step][k].item() == pytest.approx(loss.item(), rel=1e-5)


def test_a_buffer_that_serves_one_pass_may_be_replaced():
    """An auxiliary loss on its way to the loss, and a table of another length."""

    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("penalty", torch.zeros(()))
            self.register_buffer("places", torch.zeros(2))

        def forward(self, x):
            self.places = torch.arange(4.0)
            self.penalty = self.linear.weight.square().mean()
            return self.linear(x) + self.places

    def loss(model, batch):
        return model(batch["x"]).square().mean() + model.penalty

    models = [Router(), Router()]
    batch = {"x": torch.ones(2, 3, 4)}
    losses = StackedModule(models, loss, one_by_one=True).compute_losses(batch)
    for found, model in zip(losses, models, strict=True):
        torch.testing.assert_close(found, loss(model, {"x": torch.ones(3, 4)}))


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (lambda value: value.expand(32), r"\(32,\)"),
        (lambda value: value.item(), "float"),
        (lambda value: (value, {}), "tuple"),
        (lambda value: value.long(), r"\(\)"),
    ],
)
def test_a_loss_that_is_no_mean_is_refused(loss, found):
    def whole(model, batch):
        return loss(language_model_loss(model, batch))

    stack = StackedModule(make_models(), whole, one_by_one=True)
    with pytest.raises(ModuleError, match=f"the loss returns {found}; expected the mean loss"):
        stack.compute_losses(make_batch())


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_loss_of_one_number_in_a_dimension_is_that_number(one_by_one):
    def vector(model, batch):
        return language_model_loss(model, batch).reshape(1)

    stack = StackedModule(make_models(), vector, one_by_one=one_by_one)
    plain = StackedModule(make_models(), one_by_one=one_by_one)
    assert torch.equal(stack.compute_losses(make_batch()), plain.compute_losses(make_batch()))
