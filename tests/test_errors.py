"""What the programs print of an error, and with which status they end."""

import pytest
from hydra.utils import instantiate
from torch.utils.data import DataLoader, Dataset

from detpool.errors import ConfigError, DataError, did_you_mean, exit_with_message


def raise_config_error():
    raise ConfigError("too small")


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise DataError("image 7.jpg is truncated")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (raise_config_error, "error: too small"),
        (lambda: instantiate({"_target_": f"{__name__}.raise_config_error"}), "error: too small"),
        (lambda: list(DataLoader(Broken(), num_workers=1)), "error: image 7.jpg is truncated"),
    ],
)
def test_mendable_errors_are_one_message(action, message, capsys):
    with pytest.raises(SystemExit) as end, exit_with_message():
        action()
    assert end.value.code == 2
    assert capsys.readouterr().err == message + "\n"


def test_what_a_configured_object_refuses_is_one_message(capsys):
    with pytest.raises(SystemExit) as end, exit_with_message():
        instantiate({"trainer": {"_target_": "builtins.int", "_args_": ["x"]}})
    assert end.value.code == 2
    assert capsys.readouterr().err == ("error: invalid literal for int() with base 10: 'x' (while building trainer)\n")


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), exit_with_message():
        _ = 1 / 0


def test_nearest_choice():
    assert did_you_mean("roi_algn", ["roi_pool", "roi_align"]) == "; did you mean 'roi_align'?"
    assert did_you_mean("x", ["b", "a"]) == "; choose from a, b"
    assert did_you_mean("x", []) == ""
