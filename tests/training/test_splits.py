"""What the splits of a run share, as sentences."""

from types import SimpleNamespace

import pytest

from detpool.training.splits import split_notes


class Files:
    def __init__(self, *names):
        self.image_files = list(names)

    def __len__(self):
        return len(self.image_files)


TRAIN, VAL, TEST = Files("a", "b", "c"), Files("d", "e"), Files("f", "g", "h", "i")
LEAK, MIX = Files("c", "d"), Files("b", "d", "x")


@pytest.mark.parametrize(
    ("val", "test", "split", "expected"),
    [
        (VAL, TEST, "test", []),
        (VAL, VAL, "test", ["The test split is the validation set, which chose the epoch too."]),
        (VAL, Files("e", "d"), "test", ["The test split is the validation set, which chose the epoch too."]),
        (VAL, TEST, "val", ["The metrics are of the validation set, which chose the epoch too."]),
        (
            VAL,
            MIX,
            "test",
            [
                "1 of 3 test images are in the validation set, which chose the epoch.",
                "1 of 3 test images are training images.",
            ],
        ),
        (LEAK, TEST, "test", ["1 of 2 validation images are training images."]),
        (
            TRAIN,
            TRAIN,
            "test",
            [
                "The test split is the validation set, which chose the epoch too.",
                "3 of 3 validation images are training images.",
            ],
        ),
    ],
)
def test_shared_images_are_counted_and_named(val, test, split, expected):
    data = SimpleNamespace(train_dataset=TRAIN, val_dataset=val, test_dataset=test)
    assert split_notes(data, split, chosen=True, trained=True) == expected
    without_choice = [note for note in expected if "chose" not in note]
    assert split_notes(data, split, chosen=False, trained=True) == without_choice


def test_a_finished_run_is_judged_without_its_training_images():
    class Data:
        val_dataset = test_dataset = VAL

        @property
        def train_dataset(self):
            raise AssertionError("eval.py needs no training images")

    assert len(split_notes(Data(), "test", chosen=True, trained=False)) == 1
