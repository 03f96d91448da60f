"""Evaluates a checkpoint: `python eval.py ckpt_path=logs/.../runs/... [evaluation.split=val] [...]`.

`ckpt_path` is a checkpoint, or a run directory, of which the best one is taken. The model is restored from the config
of the run that wrote the checkpoint; any value of that config can be changed with `key=value` (`data.root=...`,
`evaluation.backend=faster_coco_eval`, `trainer.accelerator=gpu`). If it names code of your own, add
`imports=[my_package]`.
"""

import sys
import time
from datetime import datetime
from pathlib import Path

from detpool.config import apply_overrides, check
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
        given = [argument.removeprefix("ckpt_path=") for argument in arguments if argument.startswith("ckpt_path=")]
        if len(given) != 1 or not given[0]:
            raise ConfigError(f"give one checkpoint with ckpt_path=..., got {given}")
        path = Path(given[0]).expanduser()
        config = load_config(path)
        config.run_dir = f"logs/eval/runs/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        apply_overrides(config, [argument for argument in arguments if not argument.startswith("ckpt_path=")])
        check(config)
        from detpool.distributed import say
        from detpool.training import runs  # takes seconds: not before the config is checked

        checkpoint = runs.find_checkpoint(path)
        say(f"checkpoint: {checkpoint}")
        with naming_full_disks(config.run_dir):
            runs.restore_and_evaluate(config, checkpoint, start)


if __name__ == "__main__":
    main()
