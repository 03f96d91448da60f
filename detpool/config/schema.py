"""The keys of a config that are not arguments of a `_target_`, as classes whose fields are checked like arguments."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Annotated, Literal

from detpool.config.signatures import Parameter, parameters, resolve

PARTS = (
    "stem_pool",
    "downsample",
    "context",
    "head_pool",
    "mask_pooler",
    "iou_pooler",
    "stage2_pooler",
    "stage3_pooler",
)
"""Keys of parts that are passed to the backbone or the model, whichever has an argument of that name."""


class Object:
    """A mapping with a `_target_` that is called at the start of the run."""


class Factory:
    """A mapping with a `_target_`, usually with `_partial_: true`; the result is called later."""


class Between:
    """A closed range of numbers: `Annotated[int, Between(0, 9)]`."""

    def __init__(self, low: float, high: float | None = None) -> None: ...


@dataclass
class Node:
    """Hydra's own keys of a mapping with a `_target_`."""

    _partial_: bool
    _recursive_: bool
    _convert_: Literal["none", "partial", "object", "all"]
    _args_: list


@dataclass
class Members:
    """The sections `callbacks` and `logger`."""

    each: Object | None


@dataclass
class Optim:
    """The section `optim`."""

    optimizer: Factory
    schedule: Factory | None
    backbone_rate: Annotated[float, Between(0)] = 1.0
    frozen: list[str] = ()  # type: ignore[assignment]


@dataclass
class Evaluation:
    """The section `evaluation`."""

    split: Literal["val", "test"]
    monitor: str
    iou_types: list[Literal["bbox", "segm", "boundary"]]
    voc: bool
    voc_iou_threshold: Annotated[float, Between(0, 1)]
    backend: Literal["pycocotools", "faster_coco_eval", "hotcoco"]
    max_dets: list[Annotated[int, Between(1)]]
    pictures: Annotated[int, Between(0)]
    diagnostics: list[Literal["tide", "calibration", "confusion"]] = ()  # type: ignore[assignment]


@dataclass
class Trainer:
    """Arguments of the trainer with values that Lightning rejects only later, or that a detector does not support."""

    precision: Literal["32-true", "16-mixed", "bf16-mixed", 32, 16, "32", "16", "bf16"]
    max_epochs: Annotated[int, Between(-1)] | None
    max_steps: Annotated[int, Between(-1)]
    accumulate_grad_batches: Annotated[int, Between(1)]
    check_val_every_n_epoch: Annotated[int, Between(1)] | None
    devices: Annotated[int, Between(-1, 4096)] | str | list[int]
    log_every_n_steps: Annotated[int, Between(0)] | None
    gradient_clip_val: Annotated[float, Between(0)] | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    profiler: Literal["simple", "advanced", "pytorch"] | Object | None


@dataclass
class Model:
    """Keys of `model` in addition to the arguments of its `_target_`."""

    weights: str | None


@dataclass
class Config:
    """The top level of a config. Keys with a default may be left out."""

    data: Object
    backbone: Object
    pooler: Factory
    optim: dict
    trainer: Object
    model: Object
    evaluation: dict
    task: str | int
    run_dir: str
    class_names: list[str] | None
    seed: Annotated[int, Between(0, 4294967295)]
    ckpt_path: str | None
    channels_last: bool
    progress: bool
    imports: list[str] = ()  # type: ignore[assignment]
    keep_checkpoints: Literal["best", "all"] = "best"
    callbacks: dict | None = None
    logger: dict | None = None
    stem_pool: Factory | None = None
    downsample: Factory | None = None
    context: Factory | None = None
    head_pool: Factory | None = None
    mask_pooler: Factory | None = None
    iou_pooler: Factory | None = None
    stage2_pooler: Factory | None = None
    stage3_pooler: Factory | None = None


def fields(name: str) -> dict[str, Parameter]:
    """Returns the fields of a class in this file, in the form of a `_target_`'s arguments."""
    return parameters(resolve(ast.Name(name), __name__)) or {}
