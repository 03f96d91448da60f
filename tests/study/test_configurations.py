"""What counts as one configuration, what it is called, and that finished runs are recognised as its own."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from detpool.config import Configs
from detpool.errors import ConfigError
from detpool.study.configurations import list_configurations
from detpool.study.layout import fingerprint

CONFIGS = Configs(Path(__file__).parents[2] / "configs", "train")


def labels(*arguments: str) -> dict[str, list[int | None]]:
    return {one.label: one.seeds for one in list_configurations(CONFIGS, list(arguments))}


def test_runs_that_differ_in_the_seed_alone_are_one() -> None:
    assert labels("study=smallest") == {"pooler=roi_pool": [0, 1], "pooler=pr_roi_pool": [0, 1]}
    assert labels("study=smallest", "seed=3") == {"pooler=roi_pool": [3], "pooler=pr_roi_pool": [3]}
    both = labels("study=pooling_shapes", "variant=roi_pool,roi_align", "backbone.output_stride=16", "seed=0")
    assert list(both) == ["roi_pool", "roi_align"]
    assert labels("pooler=roi_pool") == {"pooler=roi_pool": [None]}
    assert labels() == {"the defaults": [None]}


def test_what_is_named_twice_is_there_twice() -> None:
    found = labels("pooler=roi_align,roi_pool,roi_align", "seed=0,1")
    assert found == {"pooler=roi_align": [0, 1], "pooler=roi_pool": [0, 1], "pooler=roi_align (2)": [0, 1]}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_config_of_a_finished_run_has_the_same_fingerprint(seed: int) -> None:
    (one,) = list_configurations(CONFIGS, ["study=smallest", "pooler=roi_pool"])
    config = CONFIGS.compose([*one.overrides, f"seed={seed}"])
    config.run_dir, config.class_names = "somewhere/else", ["circle"]
    left = OmegaConf.create(OmegaConf.to_yaml(config, resolve=True))  # as a run leaves it
    assert fingerprint(left) == one.runs[seed]


def test_mistakes_are_named() -> None:
    for arguments, message in (
        (["study=smalest"], "did you mean 'smallest'?"),
        (["pooler=roi_algn,roi_pool"], "did you mean 'roi_align'?"),
        (["study=smallest", "trainer.max_epoch=1"], "did you mean 'max_epochs'?"),
    ):
        with pytest.raises(ConfigError) as error:
            list_configurations(CONFIGS, arguments)
        assert message in str(error.value)
