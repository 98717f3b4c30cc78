"""``rehearse``: the peak of one stage's step, from the stage's own code on fake tensors."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.flop_counter import FlopCounterMode

from vlsi_cache.models import Backbone
from vlsi_cache.plan.rehearsing.formulae import (
    broadcast_bytes,
    bucket_bytes,
    gradient_bytes,
    optimizer_bytes,
    tensor_bytes,
    tile_bytes,
    vision_bytes,
)
from vlsi_cache.plan.rehearsing.meter import AllocationMeter
from vlsi_cache.plan.rehearsing.processes import made_up_processes
from vlsi_cache.plan.rehearsing.sketch import Sketch
from vlsi_cache.plan.rehearsing.steps import (
    Batch,
    PlannedStageName,
    StageStep,
    make_step,
    schedule_of,
)
from vlsi_cache.plan.rehearsing.world import forget_conversions, rehearsing
from vlsi_cache.recipe import Recipe
from vlsi_cache.training import StageModule
from vlsi_cache.training.sharding import FsdpOptions, slice_weights

__all__ = ["Rehearsed", "Setting", "rehearse", "trains_weights"]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all stages of a plan are rehearsed with."""

    recipe: Recipe
    """The whole run."""
    device: torch.device
    """The planned device."""
    num_processes: int
    """Processes of one training."""
    num_teacher_taps: int
    """Taps of the teacher, without the output."""
    fsdp: bool = False
    """Whether the processes share the student's weights."""
    shares_host: bool = False
    """Whether all processes divide the memory of the machine here."""
    most_devices: int = 64
    """Devices that a mend may name at most."""
    teacher_size: int | None = None
    """The teacher's hidden size, where it is known."""

    def shards(self, stage: PlannedStageName) -> bool:
        """Report whether each process holds a slice of the weights in a stage."""
        return self.fsdp and self.num_processes > 1 and not stage.startswith("teacher")


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What one step of a stage takes."""

    weights: int
    """Bytes of the model."""
    blocks: int
    """Bytes of its decoder blocks, which are among the weights."""
    added: int
    """Bytes of verbalizers and adapters."""
    gradients: int
    """Bytes of gradients, those that DDP sends included."""
    optimizer: int
    """Bytes of AdamW's state."""
    working: int
    """Bytes of activations, and of the objective's or the recorder's buffers."""
    operations: float
    """Floating-point operations of one step of the usual batch."""
    num_trained: int
    """Parameters that train."""
    batch: Batch
    """The batch that decides the peak."""
    loaded: int = 0
    """Bytes of the weights and what is added, before any process gives up a part of them."""

    @property
    def static(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.weights + self.added + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        """The most bytes at once."""
        return self.static + self.working


def trains_weights(recipe: Recipe, stage: PlannedStageName) -> bool:
    """Report whether the model's own weights train, and not only what is added to it."""
    return stage == "finetuning" or (stage == "interaction" and recipe.interaction.lora is None)


def rehearse(
    setting: Setting,
    stage: PlannedStageName,
    sketch: Sketch,
    heaviest: Batch,
    usual: Batch | None,
    patches: int,
) -> Rehearsed:
    """Run one step of a stage on fake tensors, and count what is alive.

    Args:
        setting: recipe, device and processes.
        stage: name of the stage.
        sketch: its model.
        heaviest: the batch that decides the peak.
        usual: the batch that decides the time, if operations are to be counted.
        patches: patches of the heaviest batch's pictures.

    Raises:
        ModelError: the model cannot be built from its configuration.
    """
    count = setting.num_processes if setting.shards(stage) else 1
    meter = AllocationMeter(by_gloo=count > 1 and setting.device.type == "cpu")
    with made_up_processes(count) as mesh, rehearsing(), meter:
        backbone = sketch.build(setting.device, trains=trains_weights(setting.recipe, stage))
        own = tensor_bytes(_all_tensors(backbone.decoder.model))
        num_taps, size = setting.num_teacher_taps, setting.teacher_size
        step = make_step(setting.recipe, stage, backbone, num_taps, size)
        loaded = meter.live
        share = own / tensor_bytes(_all_tensors(backbone.decoder.model))  # the rest are adapters
        if mesh is not None and step.module is not None:
            _slice(step.module, mesh, autocast=backbone.autocast)
        found = _one_step(setting, stage, backbone, step, meter, heaviest)
        weights = round(share * found.weights)
        found = replace(found, weights=weights, added=found.added + found.weights - weights)
        vision = vision_bytes(backbone, patches, keeps_all=stage == "finetuning")
        operations = _mean_count(step, usual) if usual is not None else 0.0
        del step, backbone
        gc.collect()  # hooks and modules refer to one another
    return replace(found, working=found.working + vision, operations=operations, loaded=loaded)


def _slice(module: StageModule, mesh: DeviceMesh, *, autocast: bool) -> None:
    """Leave a slice of a module's weights in each process, as ``training.sharding.shard`` does."""
    module.begin_sharding()
    slice_weights(module, FsdpOptions(), mesh, autocast=autocast)
    module.end_sharding(torch.device("cpu"))
    gc.collect()
    forget_conversions()  # what is whole is needed no more


def _one_step(
    setting: Setting,
    stage: PlannedStageName,
    backbone: Backbone,
    step: StageStep,
    meter: AllocationMeter,
    batch: Batch,
) -> Rehearsed:
    """Run the step at the batch that decides the peak."""
    weights = tensor_bytes(_all_tensors(backbone.decoder.model))
    trained, static = step.trained, meter.live
    states = [torch.empty_like(one) for one in trained for _ in range(2)]
    meter.lower()
    _run_peak(setting.recipe, stage, step, batch)
    peak = meter.peak
    for parameter in trained:
        parameter.grad = None
    gradients, optimizer = gradient_bytes(trained), optimizer_bytes(trained)
    del states
    senders = _num_senders(setting, stage)
    buckets = bucket_bytes(trained, senders)
    sent = broadcast_bytes(_all_tensors(step.module), senders) if step.module is not None else 0
    # what is sent at first lies beside the weights, when there is no gradient yet
    working = max(peak - static - gradients - optimizer, sent - gradients - buckets - optimizer, 0)
    working += _further_tiles(setting, stage, batch.num_responses, backbone)
    return Rehearsed(
        weights=weights,
        blocks=tensor_bytes(backbone.decoder.blocks.parameters()),
        added=static - weights,
        gradients=gradients + buckets,
        optimizer=optimizer,
        working=working,
        operations=0.0,
        num_trained=sum(one.numel() for one in trained),
        batch=batch,
    )


def _further_tiles(
    setting: Setting, stage: PlannedStageName, num_responses: int, backbone: Backbone
) -> int:
    """Return how many more bytes the tiles of a pass take on the run's device than on a CPU."""
    num_taps = setting.num_teacher_taps + 1 if stage == "teacher-pass" else 0
    size = backbone.decoder.head.weight.element_size()
    own, here = (
        tile_bytes(num_responses, num_taps, backbone.vocab_size, device, size)
        for device in (setting.device, torch.device("cpu"))
    )
    return own - here


def _run_peak(recipe: Recipe, stage: PlannedStageName, step: StageStep, batch: Batch) -> None:
    """Run a batch, or two where gradients of the first remain during the second."""
    schedule = schedule_of(recipe, stage)
    step.run(batch)
    if schedule is not None and schedule.gradient_accumulation > 1:
        step.run(batch)


def _num_senders(setting: Setting, stage: PlannedStageName) -> int:
    """Return the processes that send one another whole gradients.

    A mapped teacher has one process. Those that hold a teacher together shard its verbalizers, and
    those that share a student's weights send slices.
    """
    teacher = setting.recipe.teacher
    is_spread = teacher.device_map is not None or teacher.tensor_parallel > 1
    alone = setting.shards(stage) or (is_spread and stage.startswith("teacher"))
    return 1 if alone else setting.num_processes


def _mean_count(step: StageStep, batch: Batch) -> float:
    """Count the operations of a step, the mean over the stage: taps may rest from some step on."""
    first = _count(step, batch)
    if step.share == 1.0:
        return first
    step.rest()
    return step.share * first + (1 - step.share) * _count(step, batch)


def _count(step: StageStep, batch: Batch) -> float:
    with FlopCounterMode(display=False) as counter:
        step.run(batch)
    return float(counter.get_total_flops())


def _all_tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
