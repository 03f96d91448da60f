"""Learning-rate schedules by optimizer step, each with a linear warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from detpool.distributed import say
from detpool.errors import ConfigError, check_numbers

_WARMUP_START = 0.001
_WHERE = "optim.schedule"


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, _WARMUP_START + (1 - _WARMUP_START) * step / max(1, warmup_steps))


def _warn_of_warmup(factor: Callable[[int], float], total_steps: int, warmup_steps: int) -> None:
    """Warns if more than half of the training steps are warm-up, which was probably set for a longer training."""
    if 2 * warmup_steps > total_steps > 0:
        highest = max(factor(step) for step in range(total_steps))
        say(
            f"warning: optim.schedule.warmup_steps={warmup_steps} of {total_steps} steps in all: the rate is at most "
            f"{100 * highest:.3g} % of optim.optimizer.lr; shorten the warm-up or train longer"
        )


def multistep(
    optimizer: Optimizer,
    total_steps: int,
    warmup_steps: int = 0,
    milestones: Sequence[float] = (0.67, 0.92),
    gamma: float = 0.1,
) -> LambdaLR:
    """The usual schedule for detectors: linear warm-up, then the rate is multiplied by `gamma` at each milestone.

    Args:
        optimizer: the optimizer whose learning rate is scheduled.
        total_steps: number of optimizer steps of the whole training.
        warmup_steps: number of steps in which the rate rises from a thousandth of its value to the full value.
        milestones: increasing fractions of `total_steps`, in (0, 1).
        gamma: factor at each milestone.

    Raises:
        ConfigError: If the milestones do not increase within (0, 1), or another number is negative.
    """
    check_numbers(_WHERE, "at least 0", lambda number: number >= 0, warmup_steps=warmup_steps, gamma=gamma)
    milestones = list(milestones)
    if any(not 0 < milestone < 1 for milestone in milestones) or milestones != sorted(milestones):
        raise ConfigError(f"optim.schedule.milestones must increase within (0, 1), got {milestones}")
    steps = [round(milestone * total_steps) for milestone in milestones]

    def factor(step: int) -> float:
        return _warmup(step, warmup_steps) * gamma ** sum(step >= milestone for milestone in steps)

    _warn_of_warmup(factor, total_steps, warmup_steps)
    return LambdaLR(optimizer, factor)


def cosine(optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, final_fraction: float = 0.0) -> LambdaLR:
    """Linear warm-up, then half a cosine (Loshchilov & Hutter, ICLR 2017) from the rate to `final_fraction` of it.

    Args:
        optimizer: the optimizer whose learning rate is scheduled.
        total_steps: number of optimizer steps of the whole training.
        warmup_steps: number of steps in which the rate rises from a thousandth of its value to the full value.
        final_fraction: fraction of the rate that is left at the end, 0 .. 1.

    Raises:
        ConfigError: If `warmup_steps` is negative, or `final_fraction` is not in 0 .. 1.
    """
    check_numbers(_WHERE, "at least 0", lambda number: number >= 0, warmup_steps=warmup_steps)
    check_numbers(_WHERE, "in 0 .. 1", lambda number: 0 <= number <= 1, final_fraction=final_fraction)

    def factor(step: int) -> float:
        progress = min(1.0, max(0, step - warmup_steps) / max(1, total_steps - warmup_steps))
        decay = final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * progress)) / 2
        return _warmup(step, warmup_steps) * decay

    _warn_of_warmup(factor, total_steps, warmup_steps)
    return LambdaLR(optimizer, factor)
