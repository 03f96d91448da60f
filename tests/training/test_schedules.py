"""Schedules of the learning rate: a warm-up that is meant for a longer training, and numbers that mean nothing."""

import pytest
import torch

from detpool.errors import ConfigError
from detpool.training.schedules import cosine, multistep


@pytest.mark.parametrize(
    ("schedule", "steps", "warmup", "highest"),
    [
        (multistep, 6, 500, "0.699 %"),  # 0.001 + 0.999 * 3 / 500; at step 4 the rate falls
        (cosine, 6, 500, "1.1 %"),  # 0.001 + 0.999 * 5 / 500
        (multistep, 999, 500, "100 %"),
        (cosine, 999, 500, "100 %"),
        (multistep, 1000, 500, None),
        (cosine, 1000, 500, None),
        (multistep, 0, 500, None),  # nothing to train
        (cosine, 6, 0, None),
    ],
)
def test_a_warmup_that_takes_most_of_the_training_is_said(schedule, steps, warmup, highest, capsys):
    optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
    schedule(optimizer, total_steps=steps, warmup_steps=warmup)
    output = capsys.readouterr().out
    if highest is None:
        assert output == ""
    else:
        assert f"optim.schedule.warmup_steps={warmup} of {steps} steps in all: the rate is at most {highest}" in output


@pytest.mark.parametrize(
    ("schedule", "name", "value", "accepted"),
    [
        (multistep, "warmup_steps", -1, "at least 0"),
        (multistep, "gamma", -0.1, "at least 0"),
        (cosine, "warmup_steps", -1, "at least 0"),
        (cosine, "final_fraction", 1.5, "in 0 .. 1"),
    ],
)
def test_numbers_out_of_range_are_named(schedule, name, value, accepted):
    optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
    with pytest.raises(ConfigError, match=rf"optim\.schedule\.{name} must be {accepted}, got {value}"):
        schedule(optimizer, total_steps=10, **{name: value})
