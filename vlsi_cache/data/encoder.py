"""Conversations → a batch of tokens and pixels with its response mask.

Shapes: B batch, T sequence (right-padded).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from vlsi_cache.data.conversation import Conversation, Message
from vlsi_cache.data.responses import RenderedConversation, ResponseFinder
from vlsi_cache.data.sanitize import Sanitizer
from vlsi_cache.data.spans import blanks_after, shifted, tokens_in_spans
from vlsi_cache.data.template import ChatTemplate, any_of, up_to_last_answer
from vlsi_cache.errors import DataError, ModelError
from vlsi_cache.models import tokenizer_of

__all__ = ["BatchEncoder"]

_BOOKKEEPING = ("special_tokens_mask", "labels")


class BatchEncoder:
    """Encodes conversations by the processor's own chat template.

    The processor is called once per batch, so that each family's layout of pixels is its own.

    Args:
        processor: a processor, or the tokenizer of a text model.
        max_length: tokens that a conversation may have, image tokens included; None for no limit.

    Raises:
        ModelError: no (usable) chat template, no padding token to be had, or a tokenizer without
            offsets.
    """

    def __init__(
        self, processor: ProcessorMixin | PreTrainedTokenizerBase, *, max_length: int | None
    ) -> None:
        self.max_length = max_length
        self._processor: Any = _with_padding(processor)
        self._sees_images = isinstance(processor, ProcessorMixin)
        self._tokenizer = tokenizer_of(self._processor)
        if not self._tokenizer.is_fast:
            raise ModelError(
                "tokenizer gives no character offsets",
                where=type(self._tokenizer).__name__,
                mend="Save it as a fast tokenizer (tokenizer.json)",
            )
        self._template = ChatTemplate(self._processor)
        added = {token.content for token in self._tokenizer.added_tokens_decoder.values()}
        special = {token for token in added if token.strip()} | {self._tokenizer.eos_token or ""}
        self._find_responses = ResponseFinder(self._template, any_of(special - {""}))
        self._sanitize = Sanitizer(self._template.control_tokens(self._processor))

    def __call__(self, conversations: Sequence[Conversation]) -> dict[str, Tensor]:
        """Encode a batch.

        Returns:
            What the model's forward takes (``input_ids`` and ``attention_mask`` ``[B, T]`` int64,
            ``pixel_values`` …), and ``response_mask`` ``[B, T]`` bool: the assistant's tokens of
            every turn, end-of-turn tokens included.

        Raises:
            DataError: an image cannot be read, the template refuses a conversation, a conversation
                is longer than ``max_length``, or images meet a processor that sees none.
        """
        rendered = [self._render(conversation) for conversation in conversations]
        encoded = self._process(conversations, rendered)
        replacements = encoded.pop("text_replacement_offsets", None) or [[]] * len(rendered)
        offsets = np.asarray(encoded.pop("offset_mapping"))
        attention = torch.as_tensor(encoded["attention_mask"])
        self._require_fit(attention, conversations)
        masks = [
            self._response_mask(one, swaps, rows, conversation.origin)
            for one, swaps, rows, conversation in zip(
                rendered, replacements, offsets, conversations, strict=True
            )
        ]
        batch = {
            name: torch.as_tensor(value)
            for name, value in encoded.items()
            if name not in _BOOKKEEPING
        }
        batch["response_mask"] = torch.from_numpy(np.stack(masks)) & (attention > 0)
        return batch

    def _render(self, conversation: Conversation) -> RenderedConversation:
        where = _name(conversation)
        messages = self._sanitize(up_to_last_answer(conversation), where=where)
        num_images = len(_images(messages))
        if num_images and not self._sees_images:
            raise DataError(
                "sample has images, but the model reads text only",
                where=where,
                found=f"{num_images} images and {type(self._processor).__name__}",
                mend="Choose an image-text-to-text model, or data without images",
            )
        rendered = self._find_responses(messages, where=where)
        token = self._template.image_token
        if token is not None and rendered.text.count(token) != num_images:
            raise DataError(
                "chat template writes another number of image placeholders than there are images",
                where=where,
                expected=f"{num_images} times {token}",
                found=rendered.text.count(token),
                mend="Save the chat template of the image model with its processor",
            )
        return rendered

    def _process(
        self, conversations: Sequence[Conversation], rendered: Sequence[RenderedConversation]
    ) -> dict[str, Any]:
        texts = [one.text for one in rendered]
        options: dict[str, Any] = {
            "padding": True,
            "padding_side": "right",
            "truncation": False,
            "return_attention_mask": True,
            "return_offsets_mapping": True,
        }
        if not self._sees_images:
            # Templates write all special tokens themselves, as transformers has it.
            options |= {"add_special_tokens": False, "return_token_type_ids": False}
            return dict(self._tokenizer(texts, **options))
        images = [
            [image.load(where=_name(one)) for image in _images(up_to_last_answer(one))]
            for one in conversations
        ]
        beginning = self._tokenizer.bos_token
        if beginning is not None and texts[0].startswith(beginning):
            options["add_special_tokens"] = False
        # Tensors for pixels alone: some processors (Idefics 3, InternVL) fail to leave the offsets
        # out when they turn their output into tensors.
        return dict(
            self._processor(
                text=texts,
                images=images if any(images) else None,
                text_kwargs={**options, "return_text_replacement_offsets": True},
                images_kwargs={"return_tensors": "pt"},
            )
        )

    def _require_fit(self, attention_mask: Tensor, conversations: Sequence[Conversation]) -> None:
        if self.max_length is None:
            return
        for conversation, length in zip(conversations, attention_mask.sum(1).tolist(), strict=True):
            if length > self.max_length:
                raise DataError(
                    "conversation is longer than the model's context or data.max_length",
                    where=_name(conversation),
                    expected=f"at most {self.max_length} tokens",
                    found=f"{length} tokens",
                    mend="Shorten or split the conversation, or raise the limit",
                )

    def _response_mask(
        self,
        rendered: RenderedConversation,
        replacements: Sequence[Mapping[str, Any]],
        offsets: Any,
        where: str,
    ) -> Any:
        blanks = [blanks_after(rendered.text, span) for span in rendered.responses]
        mask = tokens_in_spans(shifted(rendered.responses, replacements), blanks, offsets)
        if not mask.any():
            raise DataError("no token of the responses is left", where=where)
        return mask


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


def _images(messages: Sequence[Message]) -> list[Any]:
    return [part.image for message in messages for part in message.parts if hasattr(part, "image")]


def _name(conversation: Conversation) -> str:
    return f"{conversation.origin} (sample {conversation.sample_id!r})"
