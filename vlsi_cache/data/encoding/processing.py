"""The one call of a processor that turns a batch's texts and images into tokens and pixels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from PIL.Image import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from vlsi_cache.errors import DataError, ModelError
from vlsi_cache.models import processor_name, tokenizer_of

__all__ = ["ProcessorCall"]

# Errors of processors on images of odd sizes, or on too many or too few images.
_REFUSALS = (
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    ArithmeticError,
    StrictDataclassError,
)
_OPTIONS: dict[str, Any] = {
    "padding": True,
    "padding_side": "right",
    "truncation": False,
    "return_attention_mask": True,
    "return_offsets_mapping": True,
}


class ProcessorCall:
    """Calls a processor (or a tokenizer, if the model reads text only) on whole batches.

    Attributes:
        processor: the given processor, or a copy that can pad.
        sees_images: whether it takes images.

    Args:
        processor: the processor, or the tokenizer.
        warns_of_length: whether transformers warns of texts that are too long for the tokenizer.
        num_ids: rows of the model's embedding. None is enough for every token.

    Raises:
        ModelError: the tokenizer has no character offsets, or no token to pad with.
    """

    def __init__(
        self,
        processor: ProcessorMixin | PreTrainedTokenizerBase,
        *,
        warns_of_length: bool = True,
        num_ids: int | None = None,
    ) -> None:
        self.processor: Any = _with_padding(processor, num_ids)
        self._options: dict[str, Any] = {**_OPTIONS, "verbose": warns_of_length}
        self.sees_images = isinstance(processor, ProcessorMixin)
        self._tokenizer = tokenizer_of(self.processor)
        if not self._tokenizer.is_fast:
            raise ModelError(
                "tokenizer gives no character offsets",
                where=processor_name(self._tokenizer),
                mend="Save it as a fast tokenizer (tokenizer.json)",
            )

    def __call__(
        self,
        texts: list[str],
        images: list[list[Image]],
        names: Sequence[str],
        *,
        is_plain: bool = False,
    ) -> dict[str, Any]:
        """Encode a batch.

        Args:
            texts: rendered conversations with one placeholder per image.
            images: each conversation's images.
            names: names of the samples, for errors.
            is_plain: the texts come from no template, so that the tokenizer adds special tokens.

        Returns:
            The processor's output, right-padded, with ``offset_mapping`` and, where placeholders
            were expanded, ``text_replacement_offsets``.

        Raises:
            DataError: the processor refuses a sample.
        """
        process = partial(self._process if self.sees_images else self._tokenize, is_plain=is_plain)
        try:
            return process(texts, images)
        except _REFUSALS as error:
            raise _culprit(process, texts, images, names, error) from error

    def _tokenize(
        self, texts: list[str], _: list[list[Image]], *, is_plain: bool
    ) -> dict[str, Any]:
        # As in transformers, templates write all special tokens themselves.
        tokenize: Any = self._tokenizer
        options = {**self._options, "add_special_tokens": is_plain, "return_token_type_ids": False}
        return dict(tokenize(texts, **options))

    def _process(
        self, texts: list[str], images: list[list[Image]], *, is_plain: bool
    ) -> dict[str, Any]:
        options = dict(self._options)
        beginning = self._tokenizer.bos_token
        if not is_plain and beginning is not None and texts[0].startswith(beginning):
            options["add_special_tokens"] = False  # the template wrote it already
        # Tensors are asked for pixels alone. Some processors (Idefics 3, InternVL) would turn the
        # offsets into tensors too, and fail.
        return dict(
            self.processor(
                text=texts,
                images=images if any(images) else None,
                text_kwargs=options,
                images_kwargs={"return_tensors": "pt"},
                return_text_replacement_offsets=True,
            )
        )


def _culprit(
    process: Callable[[list[str], list[list[Image]]], object],
    texts: list[str],
    images: list[list[Image]],
    names: Sequence[str],
    refusal: Exception,
) -> DataError:
    """The error that names the sample that the processor refuses, by trying each alone."""
    for name, text, own in zip(names, texts, images, strict=True):
        try:
            process([text], [own])
        except _REFUSALS as error:
            return _refused(name, error)
    return _refused(f"{names[0]} … {names[-1]}", refusal)


def _with_padding(processor: Any, num_ids: int | None) -> Any:
    """The processor. If the model has no padding token, a copy that pads with the end of text."""
    tokenizer: Any = tokenizer_of(processor)
    # Trainers add a padding token that the model's embedding does not have.
    if tokenizer.pad_token is not None and (num_ids is None or tokenizer.pad_token_id < num_ids):
        return processor
    if tokenizer.eos_token is None:
        raise ModelError(
            "tokenizer has neither a padding nor an end-of-text token",
            where=processor_name(tokenizer),
            mend="Set tokenizer.pad_token and save the processor again",
        )
    # A copy, because the original is saved beside the student and must not change.
    processor = copy.deepcopy(processor)
    tokenizer_of(processor).pad_token = tokenizer.eos_token
    return processor


def _refused(where: str, error: Exception) -> DataError:
    return DataError(
        f"processor refuses the sample ({error})",
        where=where,
        mend="Check the sample's text, and the size and number of its images",
    )
