"""A model with a fixed workload: the same batches, boxes and random numbers for all models, and for each call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning import seed_everything
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import GradClipAlgorithmType
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import detpool.ops.flops  # noqa: F401 (registers formulas)
from detpool.detection import JitteredProposals
from detpool.errors import ConfigError
from detpool.training.module import to_unit_range
from detpool.training.runs import build_module, build_trainer

from .energy import UNAVAILABLE, find_meter, joules_between
from .memory import peak_bytes
from .receptive_field import receptive_fields
from .shared import STAGES, Shared, plain

STEPS = 5
"""Number of optimizer steps with the same gradients, of which the mean is reported: one is too short to be timed."""


class FixedProposals(nn.Module):
    """Returns fixed boxes, in place of a module without weights that generates or reads proposals."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes: list[Tensor] = []

    def forward(self, *_: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
        return self.boxes, {}


class Work:
    """A model that trains and detects on fixed batches; each call begins from the same weights and random state.

    Args:
        config: a composed config.
        shared: the inputs that it shares with the other models.
        threads: number of CPU threads.

    Raises:
        ConfigError, DataError, WeightsError: If the model or its data cannot be built.
    """

    def __init__(self, config: DictConfig, shared: Shared, threads: int) -> None:
        config.data.num_workers = 0
        config.class_names, batches = shared.read(config)
        seed_everything(config.seed, verbose=False)
        trainer = build_trainer(config, [], [])
        torch.set_num_threads(threads)  # after building the trainer, which may set another number
        self.device, self._precision = trainer.strategy.root_device, trainer.precision_plugin
        self._clip = (
            config.trainer.get("gradient_clip_val") or 0,
            GradClipAlgorithmType(config.trainer.get("gradient_clip_algorithm") or "norm"),
        )
        module: Any = build_module(config, pretrained=False)
        shared.share_weights(module)
        parts = {key: plain(config.get(key)) for key in ("backbone", "stem_pool", "downsample", "context", "model")}
        parts["model"] = {key: value for key, value in parts["model"].items() if key not in ("rpn", "roi_heads")}
        self._fields = shared.once("fields", parts, lambda: receptive_fields(module.model.backbone))
        self.module: Any = module.to(self.device)
        self._precision.convert_module(module)  # in place
        self.model: Any = module.model
        self.optimizer = self.module.build_optimizer()
        values = [*self.module.parameters(), *self.module.buffers()]
        self._start = [(value, value.detach().clone()) for value in values]
        self._batches = {stage: move_data_to_device(some, self.device) for stage, some in batches.items()}
        settings = [plain(node) for node in (config.data, config.model.get("rpn"), config.model.get("proposals"))]
        self._boxes = {
            stage: shared.once(f"boxes of {stage}", settings, lambda stage=stage: self._make_boxes(stage))  # type: ignore[misc]
            for stage in STAGES
        }
        self._proposals = FixedProposals()
        if _has_weights(self.model.rpn):
            self.model.rpn.register_forward_hook(lambda _, args, found: (self._proposals.boxes, found[1]))
        else:
            self.model.rpn = self._proposals
        self._fix_detections()
        self._clock = time.process_time if self.device.type == "cpu" else self._gpu_clock
        self._meter, self._limits = find_meter(self.device)

    def _make_boxes(self, stage: str) -> list[list[Tensor]]:
        """Returns, for each batch, the boxes (n, 4) of each image for the second stage.

        An RPN with random weights finds no objects. Boxes generated from the objects therefore come first, followed by
        the RPN's boxes in their order. The total is the number of the RPN's boxes or of the generated ones, whichever
        is greater.
        """
        model, found = self.module.train(stage == "fit").model, []
        for images, targets in self._batches[stage]:
            torch.manual_seed(0)
            with torch.no_grad():
                batch, targets = model.transform(to_unit_range(images), targets)
                try:
                    boxes = model.rpn(batch, model.backbone(batch.tensors), targets)[0]
                except ValueError as error:  # for example, proposals from a file without a file name
                    raise ConfigError(str(error)) from error
                if _has_weights(model.rpn):
                    near = JitteredProposals()(batch, {}, targets)[0]
                    boxes = [torch.cat([a, b])[: max(len(a), len(b))] for a, b in zip(near, boxes, strict=True)]
            found.append(boxes)
        return found

    def _fix_detections(self) -> None:
        """Makes detection do as much work as after training, and mask heads the same work in all models.

        With random weights, the scores of all classes are similar. The threshold is set so that as many scores pass as
        there are proposals. The first proposals, up to the maximum number of detections, are passed to mask heads.
        """
        heads = self.model.roi_heads
        score_boxes, suppress, most = heads.score_boxes, heads.suppress, heads.detections_per_img
        scores: list[Tensor] = []

        def note_scores(*arguments: Any) -> Any:
            found = score_boxes(*arguments)
            scores.append(found[0][:, 1:].flatten())
            return found

        heads.score_thresh, heads.score_boxes = 1.0, note_scores
        self._detect_all()
        heads.score_boxes = score_boxes
        proposals = sum(len(box) for boxes in self._boxes["val"] for box in boxes)
        every = torch.cat(scores)
        heads.score_thresh = float(every.topk(min(proposals + 1, len(every))).values[-1]) if len(every) else 0.0

        def suppress_and_replace(*arguments: Any) -> list[dict[str, Tensor]]:
            replaced = []
            for found, box in zip(suppress(*arguments), self._proposals.boxes, strict=True):
                boxes = box[:most]
                rest = {name: value.new_ones((len(boxes), *value.shape[1:])) for name, value in found.items()}
                replaced.append({**rest, "boxes": boxes})
            return replaced

        heads.suppress = suppress_and_replace

    def _gpu_clock(self) -> float:
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _each(self, stage: str) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
        """Yields batches; before each, weights and random state are reset."""
        self.module.train(stage == "fit")
        for batch, boxes in zip(self._batches[stage], self._boxes[stage], strict=True):
            with torch.no_grad():
                for value, start in self._start:
                    value.copy_(start)
            torch.manual_seed(0)
            self._proposals.boxes = boxes
            yield batch

    def _losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        with self._precision.forward_context():
            return torch.stack(list(self.model(to_unit_range(images), targets).values())).sum()

    def _predict(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections as in evaluation: masks are not pasted into images."""
        with torch.inference_mode(), self._precision.forward_context():
            found: list[dict[str, Tensor]] = self.model.evaluate(to_unit_range(images))[0]
            return found

    def _train_all(self) -> None:
        """Runs forward and backward for each batch, and discards the gradients."""
        for images, targets in self._each("fit"):
            self._losses(images, targets).backward()
            self.optimizer.zero_grad()

    def _detect_all(self) -> int:
        """Runs detection for each batch, and returns the number of detections."""
        return sum(len(image["boxes"]) for images, _ in self._each("val") for image in self._predict(images))

    def time(self) -> dict[str, float]:
        """Mean seconds per batch of each phase of a training step and of inference, and joules if available."""
        clock, totals = self._clock, dict.fromkeys(("forward", "backward", "optimizer", "inference"), 0.0)
        joules = {"step": 0.0, "inference": 0.0}
        for images, targets in self._each("fit"):
            energy, begin = self._meter(), clock()
            loss = self._losses(images, targets)
            forward = clock()
            loss.backward()
            backward = clock()
            for _ in range(STEPS):
                self._precision.clip_gradients(self.optimizer, *self._clip)
                self.optimizer.step()
            end = clock()
            joules["step"] += joules_between(energy, self._meter(), self._limits)
            totals["forward"] += forward - begin
            totals["backward"] += backward - forward
            totals["optimizer"] += (end - backward) / STEPS
            del loss
            self.optimizer.zero_grad()
        for images, _ in self._each("val"):
            energy, begin = self._meter(), clock()
            self._predict(images)
            totals["inference"] += clock() - begin
            joules["inference"] += joules_between(energy, self._meter(), self._limits)
        if self._limits:
            totals |= {f"{name}_joules": value for name, value in joules.items()}
        return {
            name: value / len(self._batches["val" if name.startswith("inference") else "fit"])
            for name, value in totals.items()
        }

    def count(self) -> dict[str, Any]:
        """Costs of one batch other than time, number of trained parameters, and receptive fields in pixels by map."""
        rois: list[int] = []
        hook = self.model.roi_heads.box_roi_pool.register_forward_hook(
            lambda _, args, found: rois.append(sum(map(len, args[1])))
        )
        self._train_all()
        hook.remove()
        steps, batches = len(self._batches["fit"]), len(self._batches["val"])
        numbers: dict[str, Any] = {
            "parameters": sum(p.numel() for p in self.module.parameters() if p.requires_grad),
            "step_rois": sum(rois) / steps,
            "inference_detections": self._detect_all() / batches,
        }
        for name, call, number in (("step", self._train_all, steps), ("inference", self._detect_all, batches)):
            with FlopCounterMode(display=False) as counter:
                call()
            numbers[f"{name}_gflop"] = 1e-9 * counter.get_total_flops() / number
            numbers[f"{name}_mib"] = 2**-20 * peak_bytes(call, self.device)
        return {**numbers, "receptive_field": self._fields}

    @property
    def measured(self) -> str:
        """Sentence on how time and energy are measured."""
        threads = torch.get_num_threads()
        how = f"CPU time of the process, {threads} thread{'s' if threads > 1 else ''}"
        if self.device.type == "cuda":
            how = f"wall time on {torch.cuda.get_device_name(self.device)}, from idle to idle"
        return f"{how}; energy {'of the whole device' if self._limits else UNAVAILABLE}"


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
