"""Evaluates a checkpoint: `python eval.py ckpt_path=logs/.../runs/... [evaluation.split=val] [...]`.

Without a run, `model.weights=` names the weights of a detector (such as a `.pth` file of torchvision), and the other
arguments are those of `train.py`:
`python eval.py model=faster_rcnn backbone=resnet50 data=coco data.root=... model.weights=fasterrcnn.pth`.

`ckpt_path` is a checkpoint, or a run directory, whose best checkpoint is used. The model is restored from the config
of the run that wrote the checkpoint; any value of that config can be changed with `key=value` (`data.root=...`,
`evaluation.backend=faster_coco_eval`, `trainer.accelerator=gpu`). If the config names your own code, add
`imports=[my_package]`. With `data=coco data.root=...` the model is evaluated on other data, on the classes that both
data sets have; with `pooler=roi_pool` or `proposals=jittered` it is evaluated with another pooler or other proposals
(`tools/probe.py` compares several).
"""

import sys
import time
from datetime import datetime

from detpool.config import (
    apply_overrides,
    check,
    config_folder,
    parse_command_line,
    parse_path,
    replace_data,
    replace_parts,
)
from detpool.errors import ConfigError, exit_with_message
from detpool.files import naming_full_disks
from detpool.run_config import load_config


def main() -> None:
    start = time.monotonic()
    arguments = sys.argv[1:]
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return
    with exit_with_message():
        others: list[str] = []
        left: list[str] = []
        given = [argument.removeprefix("ckpt_path=") for argument in arguments if argument.startswith("ckpt_path=")]
        folder = f"run_dir=logs/eval/runs/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        if not given and any(argument.lstrip("+").startswith("model.weights=") for argument in arguments):
            line = parse_command_line([folder, *arguments], config_folder(), "train")
            config, path = line.configs.compose(line.overrides), None
            check(config, line.configs, line.overrides)
        elif len(given) == 1 and given[0]:
            path = parse_path(given[0])
            config = load_config(path)
            others = [argument for argument in arguments if not argument.startswith("ckpt_path=")]
            left = replace_data(config, others, config_folder())
            apply_overrides(config, [folder, *replace_parts(config, left, config_folder())])
            check(config)
        else:
            raise ConfigError(f"give one checkpoint with ckpt_path=..., or model.weights=..., got {given}")
        from detpool.distributed import say
        from detpool.training import runs  # takes seconds: not before the config is checked

        checkpoint = None if path is None else runs.find_checkpoint(path)
        if checkpoint is not None:
            say(f"checkpoint: {checkpoint}")
        with naming_full_disks(config.run_dir):
            runs.restore_and_evaluate(config, checkpoint, start, other_data=len(left) < len(others))
