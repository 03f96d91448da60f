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


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("dogg", "dog"),
        ("airplane", "aeroplane"),
        ("DOG", "dog"),
        ("plant", "pottedplant"),
        ("c5", "c4"),
        ("cta", "cat"),
    ],
)
def test_a_hint_is_for_slips_and_parts_of_a_name(name, choice):
    assert did_you_mean(name, [choice, "train", "something"]) == f"; did you mean {choice!r}?"


@pytest.mark.parametrize("name", ["pedestrian", "trailer", "van", "people", "motorcycle"])
def test_no_hint_for_another_word(name):
    assert did_you_mean(name, ["train", "bicycle", "person"]) == "; choose from bicycle, person, train"


def test_of_very_many_choices_some_are_listed():
    assert did_you_mean("x", [f"{i:03}" for i in range(1000)]).endswith("058, 059 and 940 more")
