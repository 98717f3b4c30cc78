"""Errors as entries of a report."""

from __future__ import annotations

from collections.abc import Sequence

from vlsi_cache.check.report import CheckFailure
from vlsi_cache.errors import VlsiCacheError, printable

__all__ = ["failure_of", "failures_of", "joined"]


def failure_of(
    error: VlsiCacheError, *, sample: str | None, models: Sequence[str] = ()
) -> CheckFailure:
    """An error as an entry of the report.

    Args:
        error: the error.
        sample: name of the sample, if it is one sample's.
        models: roles of the models that raise it.
    """
    where = error.where or ""
    why = str(error)
    why = why.removeprefix(f"{' '.join(where.split())}: ") if where else why
    return CheckFailure(
        sample=None if sample is None else printable(sample),
        models=list(models),
        where=printable(where),
        kind=printable(error.what),
        why=printable(why),
    )


def failures_of(
    error: VlsiCacheError, *, sample: str | None, models: Sequence[str] = ()
) -> list[CheckFailure]:
    """An error as entries of the report: one for each of the errors that it lists."""
    inner = [one for one in error.problems if isinstance(one, VlsiCacheError)]
    if not inner or len(inner) < len(error.problems):
        return [failure_of(error, sample=sample, models=models)]
    return [one for each in inner for one in failures_of(each, sample=sample, models=models)]


def joined(failures: Sequence[CheckFailure]) -> list[CheckFailure]:
    """Join the entries that say the same of several models."""
    found: dict[tuple[str | None, str, str], CheckFailure] = {}
    for one in failures:
        key = one.sample, one.where, one.why
        known = found.get(key)
        if known is None:
            found[key] = one
            continue
        roles = [role for role in one.models if role not in known.models]
        found[key] = known.model_copy(update={"models": known.models + roles})
    return list(found.values())
