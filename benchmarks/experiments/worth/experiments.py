"""The experiments: a question, what was predicted before any run, and the differences that decide.

The predictions follow from published figures and from the first proof's curves. An experiment's
verdict is read off its intervals by one rule, so that no one chooses it after the runs.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EXPERIMENTS", "TOKENS", "Comparison", "Experiment"]

TOKENS = "tokens"
"""In place of a figure: the tokens that an arm needs for the other's last divergence, as a share of
all tokens, less 1."""


@dataclass(frozen=True)
class Comparison:
    """A difference of two arms in one figure, seed by seed."""

    arm: str
    other: str
    figure: str
    """Name of a figure of a run."""
    title: str
    """What it is: nats of KL(teacher ‖ student) or of label loss, or an exit's acceptance."""
    predicted: tuple[float, float]
    """Bounds of the difference, written down before the runs."""
    other_figure: str | None = None
    """Figure of the other arm. The same by default."""
    seeds: range = range(13)
    """Seeds that count for it."""

    @property
    def name(self) -> str:
        """The two sides of the difference."""
        if self.arm == self.other:
            return "with record − without"
        return f"{self.arm} − {self.other}"


@dataclass(frozen=True)
class Experiment:
    """A question and how it is answered."""

    name: str
    question: str
    prediction: str
    comparisons: tuple[Comparison, ...]

    @property
    def arms(self) -> list[str]:
        """Names of the arms that it compares, in order."""
        found = [name for pair in self.comparisons for name in (pair.arm, pair.other)]
        return list(dict.fromkeys(found))


_KL = ("distilled.divergence_nats", "KL, distilled")
_KL_30 = ("step-30.divergence_nats", "KL, step 30")
_LABELS = ("distilled.label_loss", "labels, distilled")
_TUNED = ("tuned-labels.label_loss", "labels, fine-tuned")


def _exit(tap: int, trained: str = "after") -> tuple[str, str]:
    when = {"after": "afterwards", "along": "along"}[trained]
    return f"exit-{tap}.{trained}.acceptance", f"exit {tap}, {when}"


_TO_HIDDEN = range(10, 15)
_TO_NARROW = range(10, 13)
_TOKENS = (TOKENS, "tokens to the same KL, ratio − 1")
_CONFIRMING = range(13, 18)

EXPERIMENTS = (
    Experiment(
        "E0",
        "Is the early harm of the taps the fault of a rate that is too high for the verbalizers?",
        "At the adapters' rate the taps cost 0.12 nats at step 30, and verbalizers move by half "
        "their size or more. At a twentieth of it they cost at most 0.03 nats.",
        (
            Comparison("taps-fast", "output", *_KL_30, (0.05, 0.25)),
            Comparison("taps", "output", *_KL_30, (-0.05, 0.03)),
            Comparison("taps", "taps-fast", *_KL_30, (-0.25, -0.05)),
        ),
    ),
    Experiment(
        "E1",
        "Does the output learn more from the teacher's tap 26, which reads the labels better?",
        "Label loss falls by 0.10 to 0.25 nats before the fine-tuning and by 0.03 to 0.10 after "
        "it. The divergence to the teacher's output rises by 0.1 to 0.3 nats. A verbalizer that "
        "has not seen the samples lowers the loss by 0.1 to 0.35. Half of the labels' loss "
        "beside the output lowers it by 0.3 to 0.7. So tap 26 teaches labels, and no more.",
        (
            Comparison("tap-26", "output", *_LABELS, (-0.25, -0.10)),
            Comparison("tap-26", "output", *_TUNED, (-0.10, -0.03)),
            Comparison("tap-26", "output", *_KL, (0.1, 0.3)),
            Comparison("tap-26-unseen", "output", *_LABELS, (-0.35, -0.1)),
            Comparison("tap-26-unseen", "output", *_TUNED, (-0.05, 0.02)),
            Comparison("tap-26-unseen", "output", *_KL, (0.1, 0.35)),
            Comparison("output-and-labels", "output", *_LABELS, (-0.7, -0.3)),
            Comparison("output-and-labels", "output", *_KL, (0.0, 0.3)),
            Comparison("tap-26-unseen", "output-and-labels", *_LABELS, (0.05, 0.5)),
            Comparison("tap-26-unseen", "output-and-labels", *_TUNED, (-0.03, 0.05)),
        ),
    ),
    Experiment(
        "E2a",
        "Do taps pay in a run of twice the length?",
        "If they help at all, by 0.02 to 0.04 nats of divergence. If the difference is above "
        "-0.01, they do not pay by more steps.",
        (Comparison("taps-first-long", "output-long", *_KL, (-0.04, -0.02)),),
    ),
    Experiment(
        "E2b",
        "Which recipe with taps ends nearer to the teacher than the output alone?",
        "Slow verbalizers end 0.00 to 0.02 nats nearer, taps that are switched off after 30 % of "
        "the steps 0.01 to 0.02. The rival, a cosine of hidden states, ends 0.00 to 0.02 nearer.",
        (
            Comparison("taps", "output", *_KL, (-0.02, 0.0)),
            Comparison("taps-first", "output", *_KL, (-0.02, -0.01)),
            Comparison("hidden-cosine", "output", *_KL, (-0.02, 0.0)),
            Comparison("taps", "output", *_LABELS, (-0.02, 0.0)),
            Comparison("taps-first", "output", *_LABELS, (-0.02, 0.0)),
        ),
    ),
    Experiment(
        "E2c",
        "Do taps that count first end nearer, on five seeds that nothing was chosen on?",
        "They do, by 0.005 to 0.030 nats of divergence, and reach the last divergence of the "
        "output alone with 3 to 15 % fewer tokens. Label loss is 0.00 to 0.03 nats lower.",
        (
            Comparison("taps-first", "output", *_KL, (-0.03, -0.005), seeds=_CONFIRMING),
            Comparison("taps-first", "output", *_LABELS, (-0.03, 0.0), seeds=_CONFIRMING),
            Comparison("taps-first", "output", *_KL_30, (-0.25, -0.05), seeds=_CONFIRMING),
            Comparison("taps-first", "output", *_TOKENS, (-0.15, -0.03), seeds=_CONFIRMING),
        ),
    ),
    Experiment(
        "E3",
        "Does a record beside the labels keep stage three near the teacher?",
        "The divergence is 0.4 to 0.5 nats less than with labels alone, and the label loss 0.01 "
        "to 0.05 nats.",
        (
            Comparison(
                *("output", "output", "tuned-record.divergence_nats"),
                *("KL, fine-tuned", (-0.5, -0.4)),
                other_figure="tuned-labels.divergence_nats",
            ),
            Comparison(
                *("output", "output", "tuned-record.label_loss"),
                *("labels, fine-tuned", (-0.05, -0.01)),
                other_figure="tuned-labels.label_loss",
            ),
        ),
    ),
    Experiment(
        "E4",
        "Do taps that learn the output make better exits than verbalizers trained afterwards?",
        "At half the depth (tap 6) the acceptance is 0.03 to 0.10 higher than that of verbalizers "
        "trained afterwards on the student of the output alone, for at most 0.03 nats of "
        "divergence. Matched taps give 0.00 to -0.05.",
        (
            Comparison("taps-to-output", "output", *_exit(6), (0.03, 0.10)),
            Comparison("taps-to-output", "output", *_exit(10), (0.0, 0.06)),
            Comparison(
                *("taps-to-output", "output", *_exit(6, "along"), (0.0, 0.10)),
                other_figure=_exit(6)[0],
            ),
            Comparison("taps", "output", *_exit(6), (-0.05, 0.0)),
            Comparison("taps-to-output", "output", *_KL, (0.0, 0.03)),
        ),
    ),
    Experiment(
        "E5",
        "Do taps help a student that starts far away, with random blocks? (positive control)",
        "They do: by 0.1 to 0.4 nats of divergence at the end, and with 23 to 50 % fewer tokens "
        "to the last divergence of the output alone.",
        (
            Comparison("random-taps", "random-output", *_KL_30, (-0.4, -0.05)),
            Comparison("random-taps", "random-output", *_KL, (-0.4, -0.1)),
            Comparison("random-taps", "random-output", *_TOKENS, (-0.5, -0.23)),
        ),
    ),
    Experiment(
        "E6",
        "Does a hidden state that the cache keeps as signs teach what the one in memory does?",
        "512 signs, 64 bytes for each token, end 0.08 to 0.12 nats nearer than the output alone, "
        "and 0.02 to 0.11 lower on the labels. 128 signs end 0.05 to 0.09 nearer. Taps that count "
        "first add nothing to it: 0.00 to 0.02.",
        (
            Comparison("hidden-512", "output", *_KL, (-0.12, -0.08), seeds=_TO_HIDDEN),
            Comparison("hidden-512", "output", *_LABELS, (-0.11, -0.02), seeds=_TO_HIDDEN),
            Comparison("hidden-512", "output", *_KL_30, (-0.3, -0.15), seeds=_TO_HIDDEN),
            Comparison("hidden-512", "output", *_TOKENS, (-0.5, -0.2), seeds=_TO_HIDDEN),
            Comparison("hidden-512", "hidden-cosine", *_KL, (-0.01, 0.03)),
            Comparison("hidden-128", "output", *_KL, (-0.09, -0.05), seeds=_TO_HIDDEN),
            Comparison("taps-and-hidden", "hidden-512", *_KL, (-0.02, 0.0), seeds=_TO_HIDDEN),
        ),
    ),
    Experiment(
        "E7",
        "Does a student of another hidden size learn the recorded state, by a map?",
        "A student of 432 channels in place of 576 ends 0.03 to 0.15 nats nearer by it than from "
        "the output alone. One whose map stays at its closed form ends 0.00 to 0.08 nearer. One "
        "that compares the channels it was cut to, without any fit, ends 0.02 to 0.10 nearer.",
        (
            Comparison("narrow-hidden", "narrow-output", *_KL, (-0.15, -0.03), seeds=_TO_NARROW),
            Comparison("narrow-fixed", "narrow-output", *_KL, (-0.08, 0.0), seeds=_TO_NARROW),
            Comparison("narrow-kept", "narrow-output", *_KL, (-0.10, -0.02), seeds=_TO_NARROW),
        ),
    ),
)
