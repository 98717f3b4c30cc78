"""The kinds of models: which class loads one, and which are no decoders."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)

from vlsi_cache.errors import ModelError

__all__ = ["has_own_code", "loader_of", "validate_head"]

_REMOTE: Final = "transformers_modules."
"""The package in which transformers puts code that comes with models."""
_DECODER: Final = "a decoder that reads prompt and response"
_CLASSIFIERS: Final = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForImageClassification",
    "ForSentimentAnalysis",
    "RewardModel",
    "ForRewardModel",
)
"""What the classes of models end in that give labels or scores."""
_MASKED: Final = "ForMaskedLM"
_HEADS: Final = ("head", "embed_out", "output")
"""What the names of heads contain."""


def has_own_code(config: PreTrainedConfig) -> bool:
    """Report whether the code that comes with a model is run."""
    return type(config).__module__.startswith(_REMOTE)


def loader_of(config: PreTrainedConfig, name: str) -> Any:
    """Return the automatic class that loads a model.

    Raises:
        ModelError: the model is of another kind: a classifier, a masked model, an encoder-decoder,
            or a family that generates no text.
    """
    own_code = getattr(config, "auto_map", None) or {}
    for loader in (AutoModelForImageTextToText, AutoModelForCausalLM):
        if loader.__name__ in own_code and has_own_code(config):
            return loader
    kind = _other_kind(config)
    if kind is not None:
        raise ModelError(
            f"the model is {kind}",
            where=name,
            expected=_DECODER,
            found=_described(config),
            mend="Give a decoder-only model of transformers",
        )
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    raise ModelError(
        "the model is neither an image-text-to-text nor a causal language model",
        where=name,
        expected=_DECODER,
        found=_described(config),
        mend="Give a model that transformers can generate text with",
    )


def validate_head(config: PreTrainedConfig, weights: Collection[str], name: str) -> None:
    """Refuse the body of a model, as `AutoModel` saves it, that has no head of its own.

    A body with a tied head is whole: the head is its embedding.

    Args:
        config: the model's configuration.
        weights: names of all stored weights.
        name: the model, for errors.

    Raises:
        ModelError: there is no head.
    """
    bodies = [one for one in _architectures(config) if one.endswith("Model") and "Head" not in one]
    if not bodies or len(bodies) < len(_architectures(config)) or _is_tied(config):
        return
    if any(part in key for key in weights for part in _HEADS):
        return
    raise ModelError(
        "the model is a body without the head that gives probabilities",
        where=name,
        expected=f"lm_head.weight beside it, or another head of {config.model_type}",
        found=", ".join(bodies),
        mend="Save it with AutoModelForCausalLM, or give the model that it was taken from",
    )


def _is_tied(config: PreTrainedConfig) -> bool:
    """Report whether a configuration ties the head to the embedding."""
    text = config.get_text_config(decoder=True)
    return any(bool(getattr(one, "tie_word_embeddings", False)) for one in (config, text))


def _other_kind(config: PreTrainedConfig) -> str | None:
    """Return what a model is that transformers could load as a decoder, and that is none."""
    made_for = _architectures(config)
    is_causal = any(one.endswith("ForCausalLM") for one in made_for)
    if made_for and all(one.endswith(_CLASSIFIERS) for one in made_for):
        return "a classifier, which gives labels or scores"
    if made_for and all(one.endswith(_MASKED) for one in made_for):
        return "a masked language model, which reads later tokens"
    # a decoder's half of BART has no other mark than its class
    is_whole = bool(made_for) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    if config.is_encoder_decoder and is_whole and not is_causal:
        return "an encoder-decoder"
    if (
        type(config) in MODEL_FOR_MASKED_LM_MAPPING
        and getattr(config, "is_decoder", None) is False
        and not config.is_encoder_decoder
    ):
        return "an encoder, which reads later tokens"
    return None


def _architectures(config: PreTrainedConfig) -> list[str]:
    return [str(one) for one in getattr(config, "architectures", None) or ()]


def _described(config: PreTrainedConfig) -> str:
    made_for = ", ".join(_architectures(config))
    family = f"model_type {config.model_type}"
    return f"{made_for} of {family}" if made_for else family
