"""From conversations to a batch of tokens and pixels with its response mask.

Shapes: B batch, T sequence (right-padded).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from vlsi_cache.data.conversation import Conversation, Message, message_images
from vlsi_cache.data.encoding.processing import ProcessorCall
from vlsi_cache.data.encoding.responses import RenderedConversation, ResponseFinder
from vlsi_cache.data.encoding.sanitize import Sanitizer
from vlsi_cache.data.encoding.spans import blanks_after, shifted, tokens_in_spans
from vlsi_cache.data.encoding.template import ChatTemplate, any_of
from vlsi_cache.errors import DataError, ModelError
from vlsi_cache.models import tokenizer_of

__all__ = ["BatchEncoder"]

_NO_INPUTS = ("special_tokens_mask", "labels")  # some processors return them beside inputs


class BatchEncoder:
    """Encodes conversations by the processor's own chat template.

    The processor is called once per batch, so that each family keeps its own layout of pixels.

    Args:
        processor: a processor, or the tokenizer of a text model.
        max_length: most tokens of a conversation, image tokens included. None for no limit.

    Raises:
        ModelError: there is no usable chat template or no token to pad with, or the tokenizer
            gives no offsets.
    """

    def __init__(
        self, processor: ProcessorMixin | PreTrainedTokenizerBase, *, max_length: int | None
    ) -> None:
        self.max_length = max_length
        self._call = ProcessorCall(processor)
        self._template = ChatTemplate(self._call.processor)
        self._sanitize = Sanitizer(self._template.control_tokens(self._call.processor))
        self._tokenizer = tokenizer_of(self._call.processor)
        added = {token.content for token in self._tokenizer.added_tokens_decoder.values()}
        named = {self._tokenizer.eos_token} if self._tokenizer.eos_token else set()
        special = any_of(token for token in added | named if token.strip())
        self._find_responses = ResponseFinder(self._template, special)

    def word(self, token_id: int) -> str:
        """The text of one token."""
        return str(self._tokenizer.decode([token_id]))

    def __call__(self, conversations: Sequence[Conversation]) -> dict[str, Tensor]:
        """Encode a batch, without the turns after a conversation's last answer.

        Returns:
            The inputs of the model's forward (``input_ids`` and ``attention_mask`` ``[B, T]``
            int64, ``pixel_values`` …), and ``response_mask`` ``[B, T]`` bool: the assistant's
            tokens of every turn, end-of-turn tokens included.

        Raises:
            DataError: an image cannot be read, the template refuses a conversation, a conversation
                is longer than ``max_length``, or the processor takes no images and there are some.
            ModelError: the processor rewrites the text (PaliGemma).
        """
        names = [_name(conversation) for conversation in conversations]
        pruned = [
            self._sanitize(_up_to_last_answer(conversation), where=name)
            for conversation, name in zip(conversations, names, strict=True)
        ]
        rendered = [
            self._render(messages, name) for messages, name in zip(pruned, names, strict=True)
        ]
        images = [
            [image.load(where=name) for image in message_images(messages)]
            for messages, name in zip(pruned, names, strict=True)
        ]
        encoded = self._call([one.text for one in rendered], images, names)
        return self._batch(encoded, rendered, names)

    def _render(self, messages: Sequence[Message], where: str) -> RenderedConversation:
        num_images = len(message_images(messages))
        if num_images and not self._call.sees_images:
            raise DataError(
                "sample has images, but the model reads text only",
                where=where,
                found=f"{num_images} images and {type(self._call.processor).__name__}",
                mend="Choose an image-text-to-text model, or data without images",
            )
        rendered = self._find_responses(messages, where=where)
        token = self._template.image_token
        if token is not None and rendered.text.count(token) != num_images:
            raise DataError(
                "chat template does not write one placeholder per image",
                where=where,
                expected=f"{num_images} times {token}",
                found=rendered.text.count(token),
                mend="Save the chat template of the image model with its processor",
            )
        return rendered

    def _batch(
        self,
        encoded: dict[str, Any],
        rendered: Sequence[RenderedConversation],
        names: Sequence[str],
    ) -> dict[str, Tensor]:
        replacements = encoded.pop("text_replacement_offsets", None) or [[]] * len(rendered)
        offsets = np.asarray(encoded.pop("offset_mapping"))
        batch = {
            name: torch.as_tensor(value)
            for name, value in encoded.items()
            if name not in _NO_INPUTS
        }
        attention = batch["attention_mask"]
        self._validate_lengths(attention, names)
        masks = [
            self._response_mask(one, swaps, rows)
            for one, swaps, rows in zip(rendered, replacements, offsets, strict=True)
        ]
        batch["response_mask"] = torch.from_numpy(np.stack(masks)) & (attention > 0)
        return batch

    def _validate_lengths(self, attention_mask: Tensor, names: Sequence[str]) -> None:
        if self.max_length is None:
            return
        for name, length in zip(names, attention_mask.sum(1).tolist(), strict=True):
            if length > self.max_length:
                raise DataError(
                    "conversation is longer than the model's context or data.max_length",
                    where=name,
                    expected=f"at most {self.max_length} tokens",
                    found=f"{length} tokens",
                    mend="Shorten or split it. data.max_length can only lower the limit",
                )

    def _response_mask(
        self,
        rendered: RenderedConversation,
        replacements: Sequence[Mapping[str, Any]],
        offsets: np.ndarray[Any, Any],
    ) -> np.ndarray[Any, Any]:
        """``[T]`` bool of one sample."""
        ((_, length),) = shifted([(0, len(rendered.text))], replacements)
        if offsets.max(initial=0) > length:
            raise ModelError(
                "processor rewrites the chat template's text, so that responses cannot be found",
                where=type(self._call.processor).__name__,
                mend="Choose a model whose processor leaves the text as it is",
            )
        blanks = [blanks_after(rendered.text, span) for span in rendered.responses]
        return tokens_in_spans(shifted(rendered.responses, replacements), blanks, offsets)


def _up_to_last_answer(conversation: Conversation) -> tuple[Message, ...]:
    """The messages up to the assistant's last. Later messages are never predicted."""
    messages = conversation.messages
    last = max(index for index, message in enumerate(messages) if message.role == "assistant")
    return messages[: last + 1]


def _name(conversation: Conversation) -> str:
    return f"{conversation.origin} (sample {conversation.sample_id!r})"
