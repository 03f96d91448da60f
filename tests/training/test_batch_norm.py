"""Batches that leave batch normalisation one value per channel."""

import pytest
import torch
from torch import nn

from detpool.errors import ConfigError
from detpool.layers import ASPP
from detpool.training.batch_norm import normalize_single_values


def test_single_values_are_normalised_with_the_statistics_of_the_batches_before(capsys):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False))
    normalize_single_values(model)
    model(3 + 2 * torch.randn(4, 3, 5, 5))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    single = torch.randn(1, 3, 1, 1, requires_grad=True)
    output = model(single)
    first, second = model
    expected = (single - first.running_mean[:, None, None]) / (first.running_var[:, None, None] + 1e-5).sqrt()
    expected = (expected - second.running_mean[:, None, None]) / (second.running_var[:, None, None] + 1e-5).sqrt()
    torch.testing.assert_close(output, expected)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(layer.training for layer in model)
    output.sum().backward()
    assert single.grad.abs().min() > 0
    model(single)
    assert capsys.readouterr().out.count("one value per channel of a batch of shape (1, 3, 1, 1)") == 1


def test_other_batches_and_evaluation_are_as_ever():
    torch.manual_seed(0)
    ours, plain = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    normalize_single_values(ours)
    for batch in (torch.randn(2, 3), torch.randn(1, 3, 2)):
        assert torch.equal(ours(batch), plain(batch))
    ours.eval(), plain.eval()
    assert torch.equal(ours(torch.ones(1, 3)), plain(torch.ones(1, 3)))
    assert not ours.training


def test_a_layer_that_has_seen_nothing_is_an_error():
    model = ASPP(4, 4).train()
    normalize_single_values(model)
    with pytest.raises(ConfigError, match=r"convs\.4\.2 cannot normalize a batch of shape \(1, 4, 1, 1\).*batch_size"):
        model(torch.randn(1, 4, 9, 9))
    model(torch.randn(2, 4, 9, 9))
    assert model(torch.randn(1, 4, 9, 9)).shape == (1, 4, 9, 9)


def test_an_error_inside_the_layer_leaves_it_in_training():
    layer = nn.BatchNorm2d(3)
    normalize_single_values(layer)
    layer(torch.randn(2, 3, 2, 2))
    with pytest.raises((ValueError, RuntimeError)):
        layer(torch.randn(1, 4, 1, 1))
    assert layer.training
