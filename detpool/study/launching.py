"""Passes the unfinished runs of a sweep to Hydra's launcher."""

from __future__ import annotations

from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log
from hydra.types import HydraContext, TaskFunction

from detpool.config import Configs
from detpool.study.plan import Sweep


def launch(sweep: Sweep, configs: Configs, run: TaskFunction) -> None:
    """Does the runs of a sweep like Hydra's `multirun`, the sweeper of which would launch finished runs too.

    Args:
        sweep: the planned sweep.
        configs: the config files from which Hydra composes each run.
        run: the function that Hydra calls with the config of a run.
    """
    config = sweep.config
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    callbacks = Callbacks(config)
    callbacks.on_multirun_start(config=config, config_name=configs.name)
    context = HydraContext(config_loader=configs, callbacks=callbacks)
    returned: Any = []
    if sweep.names is None:
        sweeper = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=run, config=config)
        returned = sweeper.sweep(arguments=list(config.hydra.overrides.task))
    elif sweep.jobs:
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=run, config=config)
        size = config.hydra.sweeper.max_batch_size or len(sweep.jobs)
        for first in range(0, len(sweep.jobs), size):
            returned.append(launcher.launch(sweep.jobs[first : first + size], initial_job_idx=first))
            for done in returned[-1]:
                _ = done.return_value  # raises the exception that ended the run
    callbacks.on_multirun_end(config=config, config_name=configs.name, job_return=returned)
