"""From conversations to a batch of tokens and pixels with its response mask.

Shapes: B batch, T sequence (right-padded).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from vlsi_cache.data.conversation import Conversation, Message, TextPart
from vlsi_cache.data.encoding.mixing import interleave
from vlsi_cache.data.encoding.notices import Notices
from vlsi_cache.data.encoding.processing import ProcessorCall
from vlsi_cache.data.encoding.rendering.endings import TurnEnding
from vlsi_cache.data.encoding.rendering.forms import PROBE
from vlsi_cache.data.encoding.rendering.responses import RenderedConversation, ResponseFinder
from vlsi_cache.data.encoding.rendering.sanitize import Sanitizer
from vlsi_cache.data.encoding.rendering.spans import blanks_beside, shifted, tokens_in_spans
from vlsi_cache.data.encoding.rendering.template import ChatTemplate, has_template
from vlsi_cache.data.encoding.rendering.text import any_of
from vlsi_cache.data.encoding.tally import CHANGED
from vlsi_cache.errors import DataError, ModelError, counted
from vlsi_cache.models import processor_name, tokenizer_of

__all__ = ["BatchEncoder"]

logger = logging.getLogger(__name__)

_NO_INPUTS = ("special_tokens_mask", "labels")  # some processors return them beside inputs


class BatchEncoder:
    """Encodes conversations by the processor's own chat template.

    The processor is called once per batch, so that each family keeps its own layout of pixels.

    Args:
        processor: a processor, or the tokenizer of a text model.
        max_length: most tokens of a conversation, image tokens included. None for no limit.
        num_ids: rows of the model's embedding. None is enough for every token.
        short_length: tokens beyond which one text changes the positions of its whole batch.

    Raises:
        ModelError: the chat template is not usable, there is no token to pad with, or the tokenizer
            gives no offsets.
    """

    def __init__(
        self,
        processor: ProcessorMixin | PreTrainedTokenizerBase,
        *,
        max_length: int | None,
        num_ids: int | None = None,
        short_length: int | None = None,
    ) -> None:
        self.max_length = max_length
        self._short_length = short_length
        self._num_ids = num_ids
        # Who has a limit gets an error that names it, and needs no warning beside it.
        self._call = ProcessorCall(processor, warns_of_length=max_length is None, num_ids=num_ids)
        self._tokenizer = tokenizer_of(self._call.processor)
        # Made here rather than with the sanitizer, so that all loader workers share them.
        self._notices = Notices(logger)
        self._changed = CHANGED.shared()
        self._has_template = has_template(self._call.processor)
        if self._has_template:
            _ = self._template  # plain texts need none, but one that is there has to be sound

    @property
    def sees_images(self) -> bool:
        """Whether the model takes images."""
        return self._call.sees_images

    @property
    def processor(self) -> ProcessorMixin | PreTrainedTokenizerBase:
        """The processor that encodes."""
        found: ProcessorMixin | PreTrainedTokenizerBase = self._call.processor
        return found

    def word(self, token_id: int) -> str:
        """The text of one token."""
        return str(self._tokenizer.decode([token_id]))

    def __call__(self, conversations: Sequence[Conversation]) -> dict[str, Tensor]:
        """Encode a batch, without the turns after a conversation's last learned answer.

        Where only the next turn's marker stops that answer (GLM), the marker stays.

        Returns:
            The inputs of the model's forward (``input_ids`` and ``attention_mask`` ``[B, T]``
            int64, ``pixel_values`` …), and ``response_mask`` ``[B, T]`` bool: the assistant's
            tokens of every learned turn, end-of-turn tokens included.

        Raises:
            DataError: an image cannot be read, the template refuses a conversation or drops a part
                of it, no token of a conversation is learned, a conversation is longer than
                ``max_length``, or the processor takes no images and there are some.
            ModelError: there is no chat template, or the processor rewrites the text (PaliGemma).
        """
        names = [_name(conversation) for conversation in conversations]
        pruned = [
            self._prepared(conversation, name)
            for conversation, name in zip(conversations, names, strict=True)
        ]
        rendered = [
            self._render(one, name, _following(whole, len(one.messages)))
            for whole, one, name in zip(conversations, pruned, names, strict=True)
        ]
        images = [
            [image.load(where=name) for image in one.images]
            for one, name in zip(pruned, names, strict=True)
        ]
        return self._batch(self._encode(rendered, images, names), rendered, names)

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._call.processor)

    @cached_property
    def _special(self) -> frozenset[str]:
        """Special tokens, and what the tokenizer calls its end of text."""
        added = self._tokenizer.added_tokens_decoder.values()
        found = {token.content for token in added if token.special}
        found |= {self._tokenizer.eos_token} if self._tokenizer.eos_token else set()
        return frozenset(token for token in found if token.strip())

    @cached_property
    def _end(self) -> str:
        """The end of text, where the tokenizer does not add it by itself."""
        tokenizer: Any = self._tokenizer
        is_added = tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
        return "" if is_added else tokenizer.eos_token or ""

    @cached_property
    def _sanitize(self) -> Sanitizer:
        template = self._template
        named = set(self._tokenizer.special_tokens_map.values())
        named |= {
            value
            for name, value in vars(self._call.processor).items()
            if name.endswith("_token") and isinstance(value, str)
        }
        return Sanitizer(
            template.control_tokens(self._call.processor),
            template.answer_tokens(any_of(self._special)) - named,
            self._changed,
            self._notices,
        )

    @cached_property
    def _find_responses(self) -> ResponseFinder:
        template = self._template
        ending = TurnEnding(
            self._special,
            frozenset(token.content for token in self._tokenizer.added_tokens_decoder.values()),
            template.end,
            template.beginning,
            template.question,
            template.generation_prompt,
        )
        return ResponseFinder(template, ending, self._notices)

    def _prepared(self, conversation: Conversation, where: str) -> Conversation:
        """The conversation up to its last learned answer. Later turns are never predicted."""
        learned = [
            index
            for index, message in enumerate(conversation.messages)
            if message.role == "assistant" and message.learned
        ]
        if not learned:
            raise _nothing_learned(where)
        if self._is_plain(conversation):
            return conversation
        kept = conversation.messages[: learned[-1] + 1]
        return self._sanitize(replace(conversation, messages=kept), where=where)

    def _render(
        self, conversation: Conversation, where: str, following: Message | None
    ) -> RenderedConversation:
        num_images = len(conversation.images)
        if num_images and not self._call.sees_images:
            raise DataError(
                "sample has images, but the model reads text only",
                where=where,
                found=f"{counted(num_images, 'image')} and {type(self._call.processor).__name__}",
                mend="Choose an image-text-to-text model, or data without images",
            )
        if self._is_plain(conversation):
            return self._plain(conversation, where)
        rendered = self._find_responses(conversation, where=where, following=following)
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

    def _is_plain(self, conversation: Conversation) -> bool:
        """Whether a conversation is read as it is, without a template."""
        return not conversation.templated or (conversation.continues and not self._has_template)

    def _plain(self, conversation: Conversation, where: str) -> RenderedConversation:
        """The text of a base model. An answer to a prompt ends with the tokenizer's end of text.

        The tokenizer itself writes what begins a text.
        """
        texts = [message.text for message in conversation.messages]
        texts[0] = texts[0].removeprefix(self._beginning)
        *given, said = texts
        end = self._end if conversation.templated else ""
        text = "".join([*given, said if said.endswith(end) else said + end])
        header = self._headers.search(text)
        if header is not None:
            self._notices.warn(
                "rendered",
                "%s: the text spells %s, which opens a turn. All of a text is learned, what the "
                "user says too: write messages in place of text to learn answers alone",
                where,
                header.group(),
            )
        return RenderedConversation(text, ((len("".join(given)), len(text)),), is_plain=True)

    @cached_property
    def _beginning(self) -> str:
        """The beginning of text, where the tokenizer adds it by itself."""
        tokenizer: Any = self._tokenizer
        is_added = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        return (tokenizer.bos_token or "") if is_added else ""

    @cached_property
    def _headers(self) -> re.Pattern[str]:
        """Special tokens that open turns by the template."""
        if not self._has_template:
            return any_of(())
        written = self._template.question.partition(PROBE["user"])[0]
        found = set(any_of(self._special).findall(written + self._template.generation_prompt))
        return any_of(found - {self._tokenizer.bos_token, self._tokenizer.eos_token})

    def _encode(
        self,
        rendered: Sequence[RenderedConversation],
        images: Sequence[list[Image]],
        names: Sequence[str],
    ) -> dict[str, Any]:
        """Tokens and pixels of a batch, in which plain texts may stand beside conversations."""
        kinds = [False, True] if len({one.is_plain for one in rendered}) == 2 else [None]
        encoded = []
        for kind in kinds:
            rows = [row for row, one in enumerate(rendered) if kind is None or one.is_plain == kind]
            found = self._call(
                [rendered[row].text for row in rows],
                [images[row] for row in rows],
                [names[row] for row in rows],
                is_plain=rendered[rows[0]].is_plain,
            )
            encoded.append((rows, found))
        tokenizer: Any = self._tokenizer
        return interleave(encoded, pad_token_id=tokenizer.pad_token_id)

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
        self._warn_of_mixed_lengths(attention, names)
        self._validate_ids(batch["input_ids"], names)
        masks = [
            self._response_mask(one, swaps, rows)
            for one, swaps, rows in zip(rendered, replacements, offsets, strict=True)
        ]
        batch["response_mask"] = torch.from_numpy(np.stack(masks)) & (attention > 0)
        for name, learned in zip(names, batch["response_mask"].any(1).tolist(), strict=True):
            if not learned:
                raise _nothing_learned(name)
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

    def _warn_of_mixed_lengths(self, attention_mask: Tensor, names: Sequence[str]) -> None:
        if self._short_length is None:
            return
        is_long = attention_mask.sum(1) > self._short_length
        if is_long.any() and not is_long.all():
            self._notices.warn(
                "mixed lengths",
                "%s: it lies in a batch with a text of more than %d tokens, for which LongRoPE "
                "scales the positions of both. Set batch_size: 1 to read each text alone",
                names[int(is_long.int().argmin())],
                self._short_length,
            )

    def _validate_ids(self, input_ids: Tensor, names: Sequence[str]) -> None:
        """Refuse a token that the model has no row for. A GPU would end the whole run."""
        if self._num_ids is None:
            return
        for name, highest in zip(names, input_ids.amax(1).tolist(), strict=True):
            if highest >= self._num_ids:
                raise DataError(
                    "a token of the sample has no row in the model's embedding",
                    where=name,
                    expected=f"ids below {self._num_ids}",
                    found=f"{highest}, which is {self.word(highest)!r}",
                    mend="Give the tokenizer that belongs to the model, or enlarge the embedding "
                    "with resize_token_embeddings",
                )

    def _response_mask(
        self,
        rendered: RenderedConversation,
        replacements: Sequence[Mapping[str, Any]],
        offsets: np.ndarray[Any, Any],
    ) -> np.ndarray[Any, Any]:
        """``[T]`` bool of one sample, true in column 0 for none: nothing predicts that token."""
        not_first = np.arange(len(offsets)) > 0
        if rendered.is_plain:
            # Special tokens that the tokenizer adds have no characters. One at the end is learned.
            ((start, _),) = rendered.responses
            return not_first & np.maximum.accumulate(offsets[:, 1] > start if start else not_first)
        ((_, length),) = shifted([(0, len(rendered.text))], replacements)
        if offsets.max(initial=0) > length:
            raise ModelError(
                "processor rewrites the chat template's text, so that responses cannot be found",
                where=processor_name(self._call.processor),
                mend="Choose a model whose processor leaves the text as it is",
            )
        blanks = [blanks_beside(rendered.text, span) for span in rendered.responses]
        spans = shifted(rendered.responses, replacements)
        return tokens_in_spans(spans, blanks, offsets) & not_first


def _following(conversation: Conversation, count: int) -> Message | None:
    """The turn after the first ``count``, with other words: they are not part of the sample."""
    if count >= len(conversation.messages):
        return None
    return replace(conversation.messages[count], parts=(TextPart(PROBE["user"]),))


def _nothing_learned(where: str) -> DataError:
    return DataError(
        "no token of the sample is learned",
        where=where,
        expected="an answer of the assistant that is learned, after a first token",
        mend="Drop the sample, or let one of its answers be learned (weight)",
    )


def _name(conversation: Conversation) -> str:
    return f"{conversation.origin} (sample {conversation.sample_id!r})"
