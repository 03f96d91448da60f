"""A loss that is not finite, noticed before anything is made of the weights that it has spoiled."""

from types import SimpleNamespace

import pytest
import torch

from detpool.training.divergence import LossCheck
from detpool.training.module import DetectionModule

HOOKS = {
    "on_validation_start": (),
    "on_train_epoch_end": (),
    "on_save_checkpoint": ({},),
    "training_step": (([], []), 0),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_losses_of_the_step_before_are_looked_at(hook):
    check = LossCheck()
    check.check()  # of no step
    check.note(torch.tensor(3.0), {"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(2.0)}, 0, 1, [7])
    check.check()
    check.note(torch.tensor(torch.inf), {"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(torch.inf)}, 2, 9, [7, 8])
    message = r"the loss is inf at epoch 2, step 9 \(loss_a 1, loss_b inf; images \[7, 8\]\): lower optim.optimizer.lr"
    with pytest.raises(FloatingPointError, match=message):
        getattr(DetectionModule, hook)(SimpleNamespace(loss_check=check), *HOOKS[hook])
    check.check()  # once
