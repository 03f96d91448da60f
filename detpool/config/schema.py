"""The keys of a config that no signature speaks for, and what each may be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from detpool.config.values import Between, Built, Factory

SLOTS = {
    "stem_pool": "backbone",
    "downsample": "backbone",
    "context": "model",
    "head_pool": "model",
    "mask_pooler": "model",
    "iou_pooler": "model",
}
"""Top-level keys of parts that some backbones or models have, which are given to them by these names."""

EACH = "*"
"""Key of `OPTIONAL` that stands for each of a section."""

REQUIRED: dict[str, dict[str, Any]] = {
    "": {
        "data": Built,
        "backbone": Built,
        "pooler": Factory,
        "optim": dict,
        "trainer": Built,
        "model": Built,
        "evaluation": dict,
        "task": str | int,
        "run_dir": str,
        "class_names": list[str] | None,
        "seed": Annotated[int, Between(0, 2**32 - 1)],
        "ckpt_path": str | None,
        "channels_last": bool,
        "progress": bool,
    },
    "optim": {"optimizer": Factory, "schedule": Factory | None},
    "evaluation": {
        "split": Literal["val", "test"],
        "monitor": str,
        "iou_types": list[Literal["bbox", "segm"]],
        "voc": bool,
        "voc_iou_threshold": Annotated[float, Between(0, 1)],
        "backend": Literal["pycocotools", "faster_coco_eval"],
        "max_dets": list[Annotated[int, Between(1)]],
        "pictures": Annotated[int, Between(0)],
    },
}
"""By section, the keys that every config has; "" is the top level."""

OPTIONAL: dict[str, dict[str, Any]] = {
    "": {
        "callbacks": dict | None,
        "logger": dict | None,
        "imports": list[str],
        **dict.fromkeys(SLOTS, Factory | None),
    },
    "callbacks": {EACH: Built | None},
    "logger": {EACH: Built | None},
    # What Lightning takes and fails at later, or takes and a detector cannot do.
    "trainer": {
        "precision": Literal["32-true", "16-mixed", "bf16-mixed", 32, 16, "32", "16", "bf16"],
        "max_epochs": Annotated[int, Between(-1)] | None,
        "max_steps": Annotated[int, Between(-1)],
        "accumulate_grad_batches": Annotated[int, Between(1)],
        "check_val_every_n_epoch": Annotated[int, Between(1)] | None,
        "devices": Annotated[int, Between(-1, 4096)] | str | list[int],
        "log_every_n_steps": Annotated[int, Between(0)] | None,
        "gradient_clip_val": Annotated[float, Between(0)] | None,
    },
}
"""By section, keys that a config need not have."""
