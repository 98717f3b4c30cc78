"""The one call of a processor that turns a batch's texts and images into tokens and pixels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from vlsi_cache.errors import DataError, ModelError
from vlsi_cache.models import tokenizer_of

__all__ = ["ProcessorCall"]

# What processors raise on images of odd sizes, or of more or fewer than they want.
_FAULTS = (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError)
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
        processor: the one that is called: the given one, or a copy that can pad.
        sees_images: whether it takes images.

    Raises:
        ModelError: a tokenizer without character offsets or without a token to pad with.
    """

    def __init__(self, processor: ProcessorMixin | PreTrainedTokenizerBase) -> None:
        self.processor: Any = _with_padding(processor)
        self.sees_images = isinstance(processor, ProcessorMixin)
        self._tokenizer = tokenizer_of(self.processor)
        if not self._tokenizer.is_fast:
            raise ModelError(
                "tokenizer gives no character offsets",
                where=type(self._tokenizer).__name__,
                mend="Save it as a fast tokenizer (tokenizer.json)",
            )

    def __call__(
        self, texts: list[str], images: list[list[Image]], names: Sequence[str]
    ) -> dict[str, Any]:
        """Encode a batch.

        Args:
            texts: rendered conversations with one placeholder per image.
            images: each conversation's images.
            names: of the samples, for error messages.

        Returns:
            The processor's output, right-padded, with ``offset_mapping`` and, where placeholders
            were expanded, ``text_replacement_offsets``.

        Raises:
            DataError: the processor refuses a sample.
        """
        if not self.sees_images:
            # Templates write all special tokens themselves, as transformers has it.
            tokenize: Any = self._tokenizer
            return dict(
                tokenize(texts, add_special_tokens=False, return_token_type_ids=False, **_OPTIONS)
            )
        try:
            return self._process(texts, images)
        except _FAULTS as error:
            raise self._culprit(texts, images, names, error) from error

    def _process(self, texts: list[str], images: list[list[Image]]) -> dict[str, Any]:
        options = dict(_OPTIONS)
        beginning = self._tokenizer.bos_token
        if beginning is not None and texts[0].startswith(beginning):
            options["add_special_tokens"] = False  # the template wrote it: never twice
        # Tensors for pixels alone: some processors (Idefics 3, InternVL) fail to leave the offsets
        # out when they turn their output into tensors.
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
        self,
        texts: list[str],
        images: list[list[Image]],
        names: Sequence[str],
        fault: Exception,
    ) -> DataError:
        """The error that names the sample which the processor refuses, found one by one."""
        for name, text, own in zip(names, texts, images, strict=True):
            try:
                self._process([text], [own])
            except _FAULTS as error:
                return _refused(name, error)
        return _refused(f"{names[0]} … {names[-1]}", fault)


def _with_padding(processor: Any) -> Any:
    """The processor, or a copy that pads with the end-of-text token if it has no padding token."""
    tokenizer = tokenizer_of(processor)
    if tokenizer.pad_token is not None:
        return processor
    if tokenizer.eos_token is None:
        raise ModelError(
            "tokenizer has neither a padding nor an end-of-text token",
            where=type(tokenizer).__name__,
            mend="Set tokenizer.pad_token and save the processor again",
        )
    # The original is saved beside the student, and stays as it was given.
    processor = copy.deepcopy(processor)
    tokenizer_of(processor).pad_token = tokenizer.eos_token
    return processor


def _refused(where: str, error: Exception) -> DataError:
    return DataError(
        f"processor refuses the sample ({error})",
        where=where,
        mend="Check the size and number of the sample's images",
    )
