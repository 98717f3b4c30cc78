"""What was predicted before any run, and how a figure is read against it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["PREDICTION", "Guess", "verdict"]


@dataclass(frozen=True)
class Guess:
    """Bounds of one figure, written down before the runs."""

    by: str
    """Which of the two independent guesses it is."""
    figure: str
    """Name of a difference, `short`, `early` or `long`, or of a level, `short-level`."""
    low: float | None
    """None where nothing bounds it from below."""
    high: float
    likely: float | None = None
    remark: str = ""

    def holds(self, value: float) -> bool:
        """Return whether the figure lies within the bounds."""
        return (self.low is None or self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if self.low is None:
            return f"≤ {self.high:+.3f}"
        return f"{self.low:+.3f} … {self.high:+.3f}"


PREDICTION = (
    Guess("first", "long", -0.03, -0.01),
    Guess("first", "short", None, -0.05),
    Guess("first", "early", None, -0.05),
    Guess(
        *("second", "long", -0.035, -0.005, -0.02),
        "One in five that it is 0 or above. A doubling late in a run buys about 0.05 nats, and "
        "26 % fewer tokens are 0.43 of a doubling.",
    ),
    Guess("second", "short", -0.20, -0.06, -0.10),
    Guess("second", "early", -0.25, -0.05, None, "The rate is high still."),
    Guess("second", "short-level", 0.9, 1.3, None, "With 250 thousand tokens."),
    Guess("second", "long-level", 0.35, 0.6, None, "With 3 million tokens."),
)
"""Nats of KL(teacher ‖ student) on held-out conversations: hidden − output, or output's level.

They are for a SmolLM2-135M-Instruct that teaches its own cut. The long runs have 2 to 4 million
response tokens.
"""


def verdict(figure: str, found: dict[str, Any]) -> dict[str, Any]:
    """Read a figure against each guess. A difference is seen where its interval leaves zero out."""
    mean, interval = found["mean"], found["interval"]
    guesses = [guess for guess in PREDICTION if guess.figure == figure]
    is_seen = None if mean is None or interval is None else abs(mean) > interval
    return {
        "is_seen": is_seen,
        "guesses": [
            {**asdict(guess), "holds": None if mean is None else guess.holds(mean)}
            for guess in guesses
        ],
    }
