"""The warmup-stable-decay schedule, as a factor on every learning rate."""


def schedule_factor(step: int, *, steps: int, warmup: float, decay: float) -> float:
    """Return the factor on the learning rate at `step` (0-based).

    Linear warmup over the first ``warmup`` of the steps, reaching 1 at its last step; constant;
    linear decay over the last ``decay`` of the steps, which would reach 0 one step after the
    last (so that every step trains).

    Parameters
    ----------
    step : int
        From 0 to steps − 1.
    steps : int
        Length of the run.
    warmup, decay : float
        Fractions of the steps.
    """
    num_warmup, num_decay = count_warmup_steps(steps, warmup), round(decay * steps)
    factor = 1.0
    if step < num_warmup:
        factor = (step + 1) / num_warmup
    if step >= steps - num_decay:
        factor = min(factor, (steps - step) / num_decay)
    return factor


def count_warmup_steps(steps: int, warmup: float) -> int:
    """Return the number of steps that the warmup takes."""
    return round(warmup * steps)
