"""``plan_run``: what a run will take, before hours are spent."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch

from vlsi_cache.manifest import MAX_BITS, rotation_width
from vlsi_cache.matching import validate_reach
from vlsi_cache.models import load_processor_of
from vlsi_cache.phases import phase
from vlsi_cache.plan.mending import bound_of, find_mends, rehearse_stage
from vlsi_cache.plan.probe import probe_rate
from vlsi_cache.plan.progress import is_finished, num_recorded, opened_cache, stages_of
from vlsi_cache.plan.reading import SampleLengths, read_lengths
from vlsi_cache.plan.rehearsing.formulae import ACCELERATOR, USABLE, record_bytes
from vlsi_cache.plan.rehearsing.rehearsal import Rehearsed, Setting
from vlsi_cache.plan.rehearsing.sketch import REHEARSED, Sketch, read_sketch
from vlsi_cache.plan.rehearsing.steps import PlannedStageName, schedule_of
from vlsi_cache.plan.report import Plan, PlannedStage, VerbalizerParameters
from vlsi_cache.plan.spreading import host_bytes, is_mapped
from vlsi_cache.plan.verbalizers import (
    count_verbalizers,
    planned_taps,
    with_planned_verbalizers,
)
from vlsi_cache.recipe import Recipe, report_completions
from vlsi_cache.store import url_scheme
from vlsi_cache.student.hidden_state import validate_hidden_sizes

__all__ = ["Machines", "not_planned", "plan_run"]

logger = logging.getLogger(__name__)

_NOTE_EXTRAPOLATED = "tokens are extrapolated from {} of {} rows, evenly spread over the data"

_NOTE_BETWEEN = "data.select.between is not counted: stages without steps may be shorter"


@dataclass(frozen=True, slots=True)
class Machines:
    """What the run gets, and how its speed is known."""

    devices: int = 1
    """Devices, each with a process of its own."""
    memory_bytes: int | None = None
    """Memory of each device. That of the device here by default, if there is one."""
    operations_per_second: float | None = None
    """What a device does of the run's arithmetic, as the user says."""
    probe: bool = False
    """Measure it here."""
    fsdp: bool = False
    """Whether the devices share the student's weights, if there are several."""


def plan_run(
    recipe: Recipe,
    machines: Machines | None = None,
    *,
    most_rows: int = 2000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Count samples, tokens and bytes, and rehearse every stage on tensors without numbers.

    Args:
        recipe: description of the run.
        machines: devices, memory and speed. One device like the one here by default.
        most_rows: if the data has more rows, so many are read, evenly spread.
        on_progress: called with the number of rows that are done, and of all that are read.

    Raises:
        RecipeError: neither data nor a model is named.
        DataError: the data cannot be opened or read.
        ModelError: a model's configuration or processor cannot be read.
        CacheError: the cache that is there is damaged.
        CacheMismatchError: a hidden state is to be compared with one of another size.
        StageError: the student has more taps than matching allows for the teacher's.
    """
    machines = machines or Machines()
    report_completions(recipe, "teacher", "student")
    lengths = read_lengths(recipe, most_rows, on_progress)
    planner = _Planner(recipe, machines, lengths)
    return planner.plan()


class _Planner:
    """Plans one run.

    Args:
        recipe: description of the run.
        machines: devices, memory and speed.
        lengths: lengths of the data's samples.
    """

    def __init__(self, recipe: Recipe, machines: Machines, lengths: SampleLengths) -> None:
        self.recipe = recipe
        self.machines = machines
        self.lengths = lengths
        self.device = torch.device("cpu") if recipe.device == "cpu" else ACCELERATOR
        self.memory_bytes = self._memory_of(machines.devices)
        sections = {"teacher": recipe.teacher, "student": recipe.student}
        self.sketches = {
            role: read_sketch(section, role)
            for role, section in sections.items()
            if section.model is not None
        }
        self.cache = opened_cache(recipe)
        known = with_planned_verbalizers(recipe, self.sketches)
        self.setting = Setting(
            known,
            self.device,
            machines.devices,
            self._num_teacher_taps(),
            fsdp=machines.fsdp and machines.devices > 1,
            shares_host=self.device.type == "cpu" and machines.memory_bytes is None,
            teacher_size=self._teacher_size(),
        )
        self._validate_taps()
        self._validate_hidden()
        self.notes = [
            note for role, sketch in self.sketches.items() for note in not_planned(role, sketch)
        ]

    def _memory_of(self, num_processes: int) -> int | None:
        """Return the memory of each process, if it is known. Those on a CPU divide it."""
        here = _memory_here(self.device)
        if here is not None and self.device.type == "cpu":
            here //= num_processes
        return self.machines.memory_bytes or here

    def _num_processes(self, name: PlannedStageName) -> int:
        """Return the processes of a stage. A teacher that several hold together needs as many."""
        splits = self.recipe.teacher.tensor_parallel if name.startswith("teacher") else 1
        return max(self.machines.devices, splits)

    def _validate_taps(self) -> None:
        """Refuse student taps that cannot be matched with the teacher's, where both are known."""
        settings = self.setting.recipe.interaction
        is_known = self.cache is not None or "teacher" in self.sketches
        if is_known and settings.matches_taps and "interaction" in stages_of(self.recipe):
            taps = self.setting.recipe.student.taps or ()
            validate_reach(len(taps), self.setting.num_teacher_taps, settings.matching)

    def _validate_hidden(self) -> None:
        """Refuse a student whose hidden state cannot be compared with the teacher's."""
        settings, student = self.recipe.interaction.hidden, self.sketches.get("student")
        if settings is not None and student and "interaction" in stages_of(self.recipe):
            sizes = self.setting.teacher_size, student.preview.hidden_size
            validate_hidden_sizes(settings, *sizes, where=self.recipe.cache_path)

    def plan(self) -> Plan:
        """Return the plan."""
        lengths = self.lengths
        stages = [self._stage(name) for name in stages_of(self.recipe)]
        responses = lengths.extrapolated(lengths.responses)
        size, is_measured = self._cache_bytes(responses)
        if lengths.num_read < lengths.num_rows:
            read, rows = f"{lengths.num_read:,}", f"{lengths.num_rows:,}"
            self.notes.append(_NOTE_EXTRAPOLATED.format(read, rows))
        open_stages = [stage.fits for stage in stages if not stage.done]
        return Plan(
            data=lengths.source,
            samples=lengths.num_rows,
            rows_read=lengths.num_read,
            unreadable_rows=lengths.num_unreadable,
            tokens=lengths.extrapolated(lengths.tokens),
            response_tokens=responses,
            longest=max(lengths.tokens),
            cache=str(self.recipe.cache_path),
            cache_bytes=size,
            cache_bytes_measured=is_measured,
            samples_recorded=num_recorded(self.cache),
            verbalizer_parameters=self._verbalizer_parameters(),
            device=self.device.type,
            devices=self.machines.devices,
            shards_student=self.setting.fsdp,
            memory_bytes=self.memory_bytes,
            stages=stages,
            fits=None if self.memory_bytes is None else all(open_stages),
            disk_free_bytes=_free_bytes(self.recipe.cache_path),
            notes=self.notes,
        )

    def _stage(self, name: PlannedStageName) -> PlannedStage:
        role = "teacher" if name.startswith("teacher") else "student"
        sketch = self.sketches[role]
        count = self._num_processes(name)
        setting, memory = replace(self.setting, num_processes=count), self._memory_of(count)
        with phase(f"rehearsing {name}"):
            found = rehearse_stage(setting, name, sketch, self.lengths)
        done = is_finished(self.recipe, name, self.cache)
        limit = None if memory is None else USABLE * memory
        host = host_bytes(found, setting, name)
        # what lies on a CPU lies in the one memory of all its processes
        on_host = None if self.device.type != "cpu" else host
        fits = None if limit is None else found.peak <= limit and (on_host or 0) <= limit * count
        mends = []
        if limit is not None and found.peak > limit and not done:
            with phase(f"looking for what mends {name}"):
                mends = find_mends(setting, name, sketch, self.lengths, found, limit)
        samples, steps = self._length(name)
        operations = found.operations * samples / self._batch_size(name)
        heaviest = found.batch
        return PlannedStage(
            name=name,
            done=done,
            steps=steps,
            batch=(heaviest.num_samples, heaviest.length, heaviest.num_responses),
            device_bytes=found.peak,
            host_bytes=host,
            **_parts(found),
            trained_parameters=found.num_trained,
            operations=operations,
            seconds=self._seconds(name, sketch, operations),
            fits=fits,
            mends=mends,
        )

    def _batch_size(self, name: PlannedStageName) -> int:
        schedule = schedule_of(self.recipe, name)
        size = self.recipe.cache.batch_size if schedule is None else schedule.batch_size
        size = self.lengths.bounded(size, bound_of(self.recipe, name))
        return min(size, self.lengths.num_rows)

    def _length(self, name: PlannedStageName) -> tuple[float, int | None]:
        """Return the samples that a stage reads, and its optimizer steps."""
        rows = self._num_rows(name)
        schedule = schedule_of(self.recipe, name)
        if schedule is None:
            return float(max(rows - num_recorded(self.cache), 0)) or float(rows), None
        # processes that hold one teacher together read the same samples
        together = name.startswith("teacher") and (
            is_mapped(self.recipe) or self.recipe.teacher.tensor_parallel > 1
        )
        readers = 1 if together else self.machines.devices
        per_step = schedule.batch_size * schedule.gradient_accumulation * readers
        if schedule.steps is not None:
            return float(schedule.steps * per_step), schedule.steps
        samples = rows * (schedule.epochs or 1.0)
        return samples, max(ceil(samples / per_step), 1)

    def _num_rows(self, name: PlannedStageName) -> int:
        """Return the rows that a stage learns from."""
        rows, select = self.lengths.num_rows, self.recipe.data.select
        if select is None or name.startswith("teacher"):
            return rows
        if select.keep is None and _NOTE_BETWEEN not in self.notes:
            self.notes.append(_NOTE_BETWEEN)
        return max(round(rows * (select.keep or 1.0)), 1)

    def _seconds(self, name: PlannedStageName, sketch: Sketch, operations: float) -> float | None:
        rate = self.machines.operations_per_second
        if self.machines.probe:
            device = torch.device("cpu")
            if self.device.type != "cpu":
                device = torch.accelerator.current_accelerator(check_available=True) or device
            usual = self.lengths.usual(self._batch_size(name))
            rate = probe_rate(self.setting, name, sketch, usual, device)
        takes_turns = name.startswith("teacher") and is_mapped(self.recipe)
        at_work = 1 if takes_turns else self._num_processes(name)
        return None if rate is None else operations / rate / at_work

    def _cache_bytes(self, num_tokens: int) -> tuple[int, bool]:
        """Return the size of the whole cache, and whether it follows from its own shards."""
        cache, recorded = self.cache, num_recorded(self.cache)
        if cache is not None and recorded == self.lengths.num_rows:
            return cache.size_bytes(processor=True), True
        fixed = _processor_bytes(self.sketches.get("teacher"))
        if cache is not None and recorded and cache.num_tokens:
            return round(cache.size_bytes() / cache.num_tokens * num_tokens) + fixed, True
        taps = self.setting.num_teacher_taps + 1
        signs = self._num_signs()
        return record_bytes(self.recipe.cache, num_tokens, taps, signs) + fixed, False

    def _num_signs(self) -> int:
        hidden, sketch = self.recipe.cache.hidden, self.sketches.get("teacher")
        size = None if sketch is None else sketch.preview.hidden_size
        if hidden is None:
            return 0
        return hidden.num_bits(MAX_BITS if size is None else rotation_width(size))

    def _teacher_size(self) -> int | None:
        """Return the teacher's hidden size, if cache or teacher say it."""
        if self.cache is not None and self.cache.manifest.hidden is not None:
            return self.cache.manifest.hidden.width
        sketch = self.sketches.get("teacher")
        return None if sketch is None else sketch.preview.hidden_size

    def _num_teacher_taps(self) -> int:
        if self.cache is not None:
            return len(self.cache.manifest.taps) - 1
        sketch = self.sketches.get("teacher")
        if sketch is None:
            return len(planned_taps(self.recipe, "student", self.sketches["student"]))
        return len(planned_taps(self.recipe, "teacher", sketch))

    def _verbalizer_parameters(self) -> VerbalizerParameters:
        counts: dict[str, int | None] = dict.fromkeys(("teacher", "student"))
        roles: tuple[Literal["teacher", "student"], ...] = ("teacher", "student")
        for role in roles:
            if role in self.sketches:
                counts[role] = count_verbalizers(self.setting.recipe, role, self.sketches[role])
        return VerbalizerParameters(**counts)


def not_planned(role: str, sketch: Sketch) -> list[str]:
    """Return notes on settings of a model that the rehearsal does not follow."""
    section, notes = sketch.section, []
    if getattr(section, "quantization", {}) or sketch.is_quantised:
        notes.append(
            f"{role}: weights are counted at full width. The run holds them quantised, in less "
            "memory than planned"
        )
    if section.attn_implementation not in (None, *REHEARSED):
        notes.append(
            f"{role}: attention is rehearsed with scaled dot products, and not with "
            f"{section.attn_implementation}"
        )
    return notes


def _parts(found: Rehearsed) -> dict[str, Any]:
    return {
        "weights_bytes": found.weights,
        "added_bytes": found.added,
        "gradients_bytes": found.gradients,
        "optimizer_bytes": found.optimizer,
        "working_bytes": found.working,
    }


def _memory_here(device: torch.device) -> int | None:
    """Return the memory of the device here, if it is one of the planned kind."""
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return None


def _free_bytes(path: str | Path) -> int | None:
    if url_scheme(path):
        return None
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _processor_bytes(sketch: Sketch | None) -> int:
    """Return the bytes of the processor's copy in the cache."""
    if sketch is None:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        processor: Any = load_processor_of(sketch.section)
        processor.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
