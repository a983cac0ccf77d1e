"""Many small bounded least-squares problems at once: Levenberg-Marquardt with a leading R.

A bootstrap refits one model to hundreds of perturbed data sets; solving them in one batch costs
about as much as solving a few one by one. Shape letters: R problems, N points, P parameters.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Model = Callable[[Floats], tuple[Floats, Floats]]


def solve_batch(
    model: Model,
    start: Floats,
    data: Floats,
    weights: Floats,
    *,
    lower: Floats,
    upper: Floats,
    frozen: Bools,
    max_steps: int = 80,
    tolerance: float = 1e-10,
) -> tuple[Floats, Floats]:
    """Minimise Σ weights·(model − data)² for each of R problems, within bounds.

    Levenberg-Marquardt (Marquardt 1963) with an active set: a parameter at a bound whose
    gradient points outward is held for that step.

    Parameters
    ----------
    model : callable
        Maps parameters (R, P) to predictions (R, N) and their Jacobian (R, N, P).
    start : ndarray, shape (R, P)
        Starting points.
    data : ndarray, shape (R, N)
        What is fitted.
    weights : ndarray, shape (N,)
        Non-negative weights.
    lower, upper : ndarray, shape (P,)
        Bounds.
    frozen : ndarray of bool, shape (P,)
        Parameters that keep their starting value.

    Returns
    -------
    parameters : ndarray, shape (R, P)
    cost : ndarray, shape (R,)
        Weighted sum of squares at the solution.
    """
    free = ~frozen
    theta = np.where(free, np.clip(start, lower, upper), start)
    root = np.sqrt(weights)
    num, size = theta.shape
    predicted, jacobian = model(theta)
    residual = (predicted - data) * root
    cost = np.sum(residual**2, axis=1)
    slope = jacobian * root[:, None]
    damping = np.full(num, 1e-3)
    quiet = np.zeros(num, dtype=np.int64)
    active = np.arange(num)
    eye = np.eye(size)
    for _ in range(max_steps):
        here, jac, res = theta[active], slope[active], residual[active]
        gradient = np.einsum("rnp,rn->rp", jac, res)
        normal = np.matmul(jac.transpose(0, 2, 1), jac)
        diagonal = np.einsum("rpp->rp", normal)
        floor = 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
        held = frozen | ((here <= lower) & (gradient > 0.0)) | ((here >= upper) & (gradient < 0.0))
        system = normal + eye * (damping[active][:, None] * diagonal + floor)[:, None, :]
        system = np.where(held[:, :, None] | held[:, None, :], eye, system)
        step = -np.linalg.solve(system, np.where(held, 0.0, gradient)[:, :, None])[:, :, 0]
        trial = np.where(free, np.clip(here + step, lower, upper), here)
        predicted, jacobian = model(trial)
        moved = (predicted - data[active]) * root
        new_cost = np.sum(moved**2, axis=1)
        old_cost = cost[active]
        better = new_cost < old_cost
        small = old_cost - new_cost <= tolerance * old_cost
        took = active[better]
        theta[took] = trial[better]
        residual[took] = moved[better]
        slope[took] = (jacobian * root[:, None])[better]
        cost[took] = new_cost[better]
        damping[active] = np.clip(np.where(better, 0.2, 6.0) * damping[active], 1e-12, 1e14)
        quiet[active] = np.where(better & small, quiet[active] + 1, 0)
        done = (quiet[active] >= 2) | (damping[active] >= 1e12) | (cost[active] <= 0.0)
        active = active[~done]
        if len(active) == 0:
            break
    return theta, cost
