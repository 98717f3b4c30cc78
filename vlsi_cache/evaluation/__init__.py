"""Evaluating a model on held-out conversations: losses, answers, and distance to a teacher."""

from vlsi_cache.evaluation.evaluating import evaluate_model
from vlsi_cache.evaluation.report import AnswerExample, AnswerFigures, Evaluation, TapFigures
from vlsi_cache.evaluation.terminal import evaluation_table

__all__ = [
    "AnswerExample",
    "AnswerFigures",
    "Evaluation",
    "TapFigures",
    "evaluate_model",
    "evaluation_table",
]
