"""``evaluate_model``: load, read every held-out conversation, answer the questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate import PartialState

from vlsi_cache.data import Conversation, IndexedConversations, encoder_for
from vlsi_cache.errors import DataError, RecipeError, StageError
from vlsi_cache.evaluation.answers import Answer, Answerer, answer_examples, answer_figures
from vlsi_cache.evaluation.reading import Figures, Reader
from vlsi_cache.evaluation.report import Evaluation
from vlsi_cache.models import Backbone, load_backbone, preview_model
from vlsi_cache.phases import phase
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import open_cache
from vlsi_cache.student.cached import open_cache_of, validate_model
from vlsi_cache.training import Run, begin_run, reason_of
from vlsi_cache.verbalizer import VerbalizerBank, load_verbalizers
from vlsi_cache.verbalizer.checkpoint import read_config

__all__ = ["evaluate_model"]

Items = list[tuple[int, Conversation]]


def evaluate_model(
    recipe: Recipe,
    *,
    with_cache: bool = False,
    max_new_tokens: int = 0,
    batch_size: int = 8,
) -> Evaluation:
    """Evaluate ``student.model`` on the recipe's data.

    Args:
        recipe: ``student.model``, ``student.verbalizers``, ``data``, ``cache.path`` and ``device``
            are read.
        with_cache: whether the divergence to the cache is measured. The cache has to hold this
            data.
        max_new_tokens: longest generated answer. 0 generates none.
        batch_size: conversations per forward pass.

    Raises:
        VlsiCacheError: whatever the user can mend; see the exception tree.
    """
    run = begin_run(recipe, "student", checks=_checks(recipe, with_cache=with_cache))
    _validate_alone(run)
    if recipe.data.select is not None:
        run.reminders.append("data.select has no effect: evaluate reads every sample")
    cache = open_cache_of(run) if with_cache else None
    model = load_backbone(recipe.student, "student", run.device, called="model")
    if cache is not None:
        validate_model(cache, model)
    encoder = encoder_for(model, recipe.data)
    reader = Reader(model, _verbalizers(recipe, model), encoder, cache)
    answerer = Answerer(model, encoder, max_new_tokens) if max_new_tokens else None
    found, answers = _read(run, reader, answerer, batch_size)
    if answerer is not None:
        run.reminders.extend(_notes(answerer, len(answers), found.num_samples))
    run.remind()
    return _evaluation(run, model, found, answers)


def _notes(answerer: Answerer, num_answers: int, num_samples: int) -> Iterator[str]:
    """Yield what the figures of the answers do not say themselves."""
    if answerer.num_longer:
        yield (
            f"{answerer.num_longer:,} of {num_samples:,} recorded answers are longer than "
            f"the {answerer.max_new_tokens} tokens of --generate, and no generated answer can "
            "equal them"
        )
    if num_answers < num_samples:
        yield (
            f"{num_samples - num_answers:,} of {num_samples:,} samples have no turn with a text to "
            "answer, as plain text has none: --generate leaves them out"
        )


def _checks(recipe: Recipe, *, with_cache: bool) -> list[Callable[[], object]]:
    """Return cheap checks of what the command reads beside the data."""
    checks: list[Callable[[], object]] = [lambda: preview_model(recipe.student, "student")]
    if (folder := recipe.student.verbalizers) is not None:
        checks.append(lambda: read_config(folder))
    if with_cache:
        checks.append(lambda: open_cache(recipe.cache_path))
    return checks


def _validate_alone(run: Run) -> None:
    if run.sharding is not None:
        raise RecipeError(
            "FSDP is for training, and evaluate reads with a whole model",
            where="environment",
            mend="Start evaluate without FSDP",
        )
    if PartialState().num_processes > 1:
        raise RecipeError(
            "evaluate runs in one process",
            where="environment",
            found=f"{PartialState().num_processes} processes",
            mend="Start it without a launcher",
        )


def _read(
    run: Run, reader: Reader, answerer: Answerer | None, batch_size: int
) -> tuple[Figures, list[Answer]]:
    """Read every sample, and answer its question if asked."""
    found, answers = Figures(), []
    with phase("evaluating", total=len(run.data), unit="samples") as progress:
        for indices in _batches(run, batch_size):
            items = _readable(run, reader, indices)
            for group in _apart(reader, items):
                found.add(reader(group))
            if items:
                answers += answerer([one for _, one in items]) if answerer else []
            progress.advance(len(indices))
    return found, answers


def _evaluation(run: Run, model: Backbone, found: Figures, answers: list[Answer]) -> Evaluation:
    num_read = found.num_samples
    if not num_read:
        raise StageError(
            "no sample could be evaluated",
            where=run.data.source,
            mend="Run vlsi-cache check on the same data, which names the reason of each",
        )
    figures = answer_figures(answers)
    return Evaluation(
        model=model.name,
        data=run.data.source,
        num_samples=num_read,
        num_left_out=len(run.data) - num_read,
        accuracy=figures["all"].accuracy if figures else None,
        answers=figures,
        examples=answer_examples(answers),
        **found.summary(),
    )


def _apart(reader: Reader, items: Items) -> list[Items]:
    """Return the samples that the cache holds, and the others, as batches of their own."""
    recorded = [item for item in items if reader.is_recorded(item[0])]
    others = [item for item in items if not reader.is_recorded(item[0])]
    return [group for group in (recorded, others) if group]


def _verbalizers(recipe: Recipe, model: Backbone) -> VerbalizerBank | None:
    folder: Path | None = recipe.student.verbalizers
    if folder is None:
        return None
    return load_verbalizers(folder, model.decoder, fingerprint=model.fingerprint)


def _batches(run: Run, batch_size: int) -> Iterator[list[int]]:
    for start in range(0, len(run.data), batch_size):
        yield list(range(start, min(start + batch_size, len(run.data))))


def _readable(run: Run, reader: Reader, indices: list[int]) -> Items:
    """Return the samples that can be read. The others are left out with ``skip``."""
    samples, found = IndexedConversations(run.data), []
    for index in indices:
        try:
            item = samples[index]
            if run.recipe.skips_failures:
                reader.validate(item)
        except DataError as error:
            if not run.recipe.skips_failures:
                raise
            run.reminders.append(f"sample {index} is left out: {reason_of(error)}")
            continue
        found.append(item)
    return found
