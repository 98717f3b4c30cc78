"""The dump and the trainings: short runs first, whose pace decides the long ones' length."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.longer.commands import Clock, Job, run_jobs
from experiments.longer.curves import Curve
from experiments.longer.making import Answers
from experiments.longer.setting import ARMS, Setting

__all__ = ["Run", "Trainer"]

_DUMP_SHARE, _SHORT_SHARE = 0.6, 0.75
"""Shares of the budget at which the dump and the short runs must have ended."""
_CUT_SHORT = 40.0
"""Seconds beyond the budget that a long run may take, because a cut run has no end to compare."""
_MEASURING = 2.0
"""Seconds that a measurement on the way takes, or less."""
_SLOWER = 1.12
"""Pace of a long run over that of a short one, at most."""
_LONG_WARMUP = 40


@dataclass
class Run:
    """One student."""

    kind: str
    """`short` or `long`: each has a schedule of its own."""
    arm: str
    seed: int
    steps: int
    folder: Path
    job: Job

    @property
    def name(self) -> str:
        """Its name among all runs."""
        return self.job.name

    @property
    def student(self) -> Path | None:
        """The folder of the finished student, if it finished."""
        model = self.folder / "interaction" / "model"
        return model if self.job.code == 0 and (model / "config.json").exists() else None

    @property
    def curve(self) -> Curve:
        """What it logged so far."""
        return Curve.read(self.folder / "interaction")


@dataclass(frozen=True)
class Trainer:
    """What all runs share."""

    setting: Setting
    teacher: Path
    answers: Answers
    device: torch.device
    clock: Clock
    runs: list[Run] = field(default_factory=list)
    """Those that were planned so far."""

    @property
    def part(self) -> float:
        """Share of the conversations that no student learns from."""
        share = self.setting.held_out_samples / self.answers.conversations
        return min(max(0.02, share), 0.2)

    @property
    def tokens_per_step(self) -> float:
        """Response tokens of a step."""
        return self.answers.tokens_each * self.setting.batch_size

    @property
    def epoch(self) -> int:
        """Steps that see each conversation once."""
        usable = self.answers.conversations * (1 - self.part)
        return max(int(usable / self.setting.batch_size), 1)

    def dump(self) -> None:
        """Record the teacher by several processes. If one fails, another goes on alone."""
        recipe = self._recipe(self.setting.folder / "dump", {})
        words = ("dump-teacher", "--recipe", str(recipe))
        count = self.setting.dumps
        parts = [(*words, "--partition", f"{i}/{count}") for i in range(1, count + 1)]
        jobs = [self._job(f"dump-{i}", part) for i, part in enumerate(parts, 1)]
        run_jobs(jobs, count, self.setting.budget * _DUMP_SHARE, self.clock)
        if any(job.code != 0 for job in jobs):
            last = self._job("dump-last", words)
            run_jobs([last], 1, self.setting.budget * _SHORT_SHARE, self.clock)
            if last.code != 0:
                raise SystemExit(
                    f"no cache was made within {self.setting.budget * _SHORT_SHARE:.0f} s. "
                    f"The logs are in {last.log.parent}. Give a larger --budget?"
                )

    def train_short(self) -> None:
        """Train the short runs of every seed and arm."""
        steps = max(min(round(self.setting.short_tokens / self.tokens_per_step), self.epoch), 1)
        self._train("short", steps, self.setting.budget * _SHORT_SHARE)

    def train_long(self) -> None:
        """Train the long runs: an epoch, or as many steps as the time has room for."""
        steps = min(self.epoch, self._steps_that_fit())
        self._train("long", steps, self.setting.budget + _CUT_SHORT)

    def _steps_that_fit(self) -> int:
        ended = [(run, run.curve.seconds_per_step) for run in self.runs if run.job.seconds]
        paces = [(run, pace) for run, pace in ended if pace]
        if not paces:
            return self.epoch
        pace = fmean(found for _, found in paces)
        # imports, loading, and everything but the steps
        overhead = max((run.job.seconds or 0.0) - found * run.steps for run, found in paces)
        waves = -(-len(ARMS) * self.setting.seeds // self.setting.parallel)
        room = (self.setting.budget - self.clock.spent) / waves - overhead - 5
        measured = pace + _MEASURING / self.setting.measured_every
        return max(int(room / (measured * _SLOWER)), 1)

    def _train(self, kind: str, steps: int, until: float) -> None:
        runs = [
            self._run(kind, arm, seed, steps) for seed in range(self.setting.seeds) for arm in ARMS
        ]
        self.runs.extend(runs)
        run_jobs([run.job for run in runs], self.setting.parallel, until, self.clock)

    def _run(self, kind: str, arm: str, seed: int, steps: int) -> Run:
        name = f"{kind}-{arm}-{seed}"
        folder = self.setting.folder / "runs" / name
        sections = {**self._sections(kind, arm, steps), "seed": seed}
        recipe = self._recipe(folder, sections)
        job = self._job(name, ("train-student", "--recipe", str(recipe)))
        return Run(kind, arm, seed, steps, folder, job)

    def _sections(self, kind: str, arm: str, steps: int) -> dict[str, Any]:
        setting, is_short = self.setting, kind == "short"
        warmup = steps // 10 if is_short else min(steps // 10, _LONG_WARMUP)
        return {
            "stages": ["interaction"],
            "interaction": {
                "steps": steps,
                "batch_size": setting.batch_size,
                "learning_rate": setting.learning_rate,
                "final_learning_rate": setting.learning_rate / 20,
                "warmup_steps": max(warmup, 1),
                "inner": "none",
                "lora": None,  # whole blocks train
                "hidden": ARMS[arm],
                "workers": min(setting.workers, 1),
                "log_every": 1 if setting.made_up else 10,
                "save_every": 1_000_000,
                "save_every_minutes": None,
            },
            "held_out": {
                "part": self.part,
                "limit": setting.measured_samples,
                "every": max(steps // 3, 1) if is_short else setting.measured_every,
                "batch_size": 16 if setting.made_up else 128,
            },
        }

    def _recipe(self, folder: Path, sections: Mapping[str, Any]) -> Path:
        """Write a recipe, and return its file."""
        setting = self.setting
        found = {
            "teacher": {
                "model": str(self.teacher),
                "taps": [setting.tap],
                "verbalizer": {"structure": "logit_lens"},
            },
            "student": {"model": str(setting.student)},
            "data": {"path": str(setting.data)},
            "cache": {
                "path": str(setting.folder / "cache"),
                "hidden": {},
                "samples_per_shard": setting.samples_per_shard,
                "batch_size": 256,
                "batch_tokens": 16384,
                "workers": setting.workers,
            },
            "output": str(folder),
            "device": str(self.device),
            **sections,
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "recipe.yaml"
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")  # JSON is YAML
        return path

    def _job(self, name: str, words: Sequence[str]) -> Job:
        return Job(name, words, self.setting.folder)
