import pytest
import torch

from hptransfer.train._ensemble import UPDATES, StackedParameter, StepTensors, orthogonalize

STEPS, K = 20, 3
LRS = (0.03, 0.01, 0.002)
DECAYS = (0.0, 0.1, 1.0)
#: Decay rates of the means; Lion takes both, the others the first.
BETAS = {"sgd": (0.9, 0.0), "lion": (0.9, 0.99), "muon": (0.95, 0.0)}


class ReferenceLion(torch.optim.Optimizer):
    """Algorithm 2 of the paper, line by line."""

    def __init__(self, parameters, lr, weight_decay):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        beta1, beta2 = BETAS["lion"]
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                c = beta1 * m + (1 - beta1) * p.grad
                p -= group["lr"] * (torch.sign(c) + group["weight_decay"] * p)
                self.state[p]["m"] = beta2 * m + (1 - beta2) * p.grad


def make_reference(name, parameter, lr, decay):
    if name == "sgd":
        return torch.optim.SGD([parameter], lr=lr, momentum=BETAS[name][0], weight_decay=decay)
    if name == "lion":
        return ReferenceLion([parameter], lr, decay)
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon is there since PyTorch 2.9")
    return torch.optim.Muon([parameter], lr=lr, momentum=BETAS[name][0], weight_decay=decay)


def schedule(step):
    return min(1.0, (step + 1) / 5)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (8, 8)])
@pytest.mark.parametrize("name", ["sgd", "lion", "muon"])
def test_stacked_updates_are_those_of_single_optimizers(name, shape):
    generator = torch.Generator().manual_seed(3)
    draw = {"generator": generator, "dtype": torch.float64}
    start = torch.randn(K, *shape, **draw)
    grads = [torch.randn(K, *shape, **draw) * 0.5**step for step in range(STEPS)]

    singles = [start[k].clone().requires_grad_() for k in range(K)]
    optimizers = [
        make_reference(name, p, lr, decay)
        for p, lr, decay in zip(singles, LRS, DECAYS, strict=True)
    ]
    for step, grad in enumerate(grads):
        for k, optimizer in enumerate(optimizers):
            singles[k].grad = grad[k].clone()
            for group in optimizer.param_groups:
                group["lr"] = LRS[k] * schedule(step)
            optimizer.step()

    value, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    lr = torch.tensor(LRS, dtype=torch.float64)
    decay = torch.tensor(DECAYS, dtype=torch.float64)
    eps = torch.full((K,), 1e-8, dtype=torch.float64)
    update = UPDATES[name]
    for step, grad in enumerate(grads):
        c1, c2 = (1 - beta ** (step + 1) for beta in BETAS[name])
        numbers = torch.tensor([schedule(step), c2**0.5, c2**0.5 / c1], dtype=torch.float64)
        tensors = [StepTensors(StackedParameter(value, lr, decay, eps, mean, square), grad)]
        update(tensors, numbers, *BETAS[name])
    torch.testing.assert_close(value, torch.stack(singles).detach(), rtol=1e-10, atol=1e-12)
    assert not torch.equal(value, start)


@pytest.mark.parametrize("name", UPDATES)
def test_a_planted_nan_leaves_neighbours_bit_identical(name):
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(K, 5, 7, generator=generator)
    grads = torch.randn(4, K, 5, 7, generator=generator)

    def run(planted):
        value, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        if planted:
            value[1, 0, 0] = torch.nan
        lr = torch.tensor(LRS)
        for grad in grads:
            found = grad.clone()
            if planted:
                found[1] = torch.nan
            tensors = [StepTensors(StackedParameter(value, lr, lr, lr, mean, square), found)]
            UPDATES[name](tensors, torch.ones(3), 0.9, 0.99)
        return value

    clean, planted = run(False), run(True)
    assert torch.equal(clean[[0, 2]], planted[[0, 2]])
    assert planted[1].isnan().any()


def test_orthogonalize_keeps_singular_vectors_and_evens_singular_values():
    matrix = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(1))
    found = orthogonalize(matrix).float()
    for k in range(2):
        left, values, right = torch.linalg.svd(matrix[k], full_matrices=False)
        inner = left.T @ found[k] @ right.T
        assert torch.all((inner.diag() > 0.5) & (inner.diag() < 1.3))
        assert (inner - inner.diag().diag()).abs().max() < 0.1
        assert values.max() / values.min() > 2


def test_orthogonalize_commutes_with_transposition():
    matrix = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        orthogonalize(matrix.mT), orthogonalize(matrix).mT, rtol=0, atol=0.02
    )
