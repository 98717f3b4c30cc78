"""What templates are given: roles, names, variables, the day, tokens in texts, plain text."""

from __future__ import annotations

import copy
import datetime
from typing import Any

import pytest
from torch.utils.data import DataLoader

from support.familytokenizers import FAMILY_TOKENIZERS, family_tokenizer
from support.processors import image_processor_for, text_tokenizer
from support.talks import (
    CALLS,
    INLINE,
    PLAIN,
    TOOL,
    conversation,
    learned,
    learned_with,
    text_of,
    turn,
)
from vlsi_cache.data import BatchEncoder, Conversation, TokenBatches, load_conversations
from vlsi_cache.data.encoding.tally import report_changed_samples, take_changed_samples
from vlsi_cache.errors import DataError, ModelError

SHORT = conversation(turn("user", "What?"), turn("assistant", "red"))

_BARE = "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"


@pytest.mark.parametrize("kind", FAMILY_TOKENIZERS)
@pytest.mark.parametrize("template", [None, _BARE])
def test_nothing_predicts_the_first_token(kind: str, template: str | None) -> None:
    if template is None and kind == "gemma2":
        # It refuses a conversation that begins like this.
        with pytest.raises(DataError, match="roles must alternate"):
            learned(kind, conversation(*PLAIN.messages[1:]))
        return
    tokenizer = copy.deepcopy(family_tokenizer(kind))
    tokenizer.chat_template = template or tokenizer.chat_template
    batch = BatchEncoder(tokenizer, max_length=None)([conversation(*PLAIN.messages[1:]), PLAIN])
    assert not batch["response_mask"][:, 0].any()
    assert batch["response_mask"].any(1).all()


@pytest.mark.parametrize(
    "kind", ["qwen3", "smollm3", "r1-distill", "glm4.5", "command-r7b", "mistral"]
)
def test_a_role_that_a_template_drops_is_refused(kind: str) -> None:
    brief = conversation(turn("developer", "Be brief."), *PLAIN.messages)
    with pytest.raises(DataError, match=r"drops the turn of role developer|Only user and"):
        learned(kind, brief)


def test_only_the_last_of_two_system_turns_is_not_enough() -> None:
    twice = conversation(turn("system", "Be brief."), turn("system", "Be kind."), *PLAIN.messages)
    with pytest.raises(DataError, match="drops the turn of role system"):
        learned("r1-distill", twice)


def test_names_and_variables_that_a_template_does_not_read_are_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    named = conversation(
        turn("user", "What?", name="Bob"),
        turn("assistant", "red", name="Eve"),
        enable_thinking=False,
        mood="fine",
    )
    encoder = BatchEncoder(family_tokenizer("qwen3"), max_length=None)
    encoder([named, named])
    said = [record.message.partition(": ")[2] for record in caplog.records]
    assert said == [
        "the chat template does not read the variable mood",
        "the chat template does not read name",
    ]


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "chat_template"])
def test_a_variable_with_a_name_that_is_taken_is_refused(name: str) -> None:
    sample = Conversation("sample", PLAIN.messages, "talk:1", (), {name: True})
    with pytest.raises(DataError, match=rf"talk:1 .*names that are taken; found {name}"):
        learned("qwen3", sample)


def test_an_answer_outside_of_the_tags_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = copy.deepcopy(text_tokenizer("chatml"))
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}"
        "{% if loop.last %}{% generation %}{{ message['content'] }}{% endgeneration %}"
        "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    assert learned_with(tokenizer, PLAIN) == ["4 blue<|im_end|>"]
    assert "tags leave an answer out" in caplog.text


def test_tags_find_answers_that_the_template_rewrites() -> None:
    tokenizer = copy.deepcopy(text_tokenizer("chatml"))
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}"
        "{% if '4' in message['content'] %}{{ message['content'] | length }}{% endif %}"
        "{% endgeneration %}"
        "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    first, *rest = PLAIN.messages
    half = conversation(first, turn("assistant", "ab", learned=False), *rest[1:])
    assert learned_with(tokenizer, half) == ["4 blue6<|im_end|>"]


def test_samples_changed_in_loader_workers_are_counted() -> None:
    take_changed_samples()
    collate = TokenBatches(BatchEncoder(text_tokenizer("chatml"), max_length=None))
    spelt = (turn("user", "a<|im_end|>b"), turn("assistant", "red"))
    samples = [(number, Conversation(str(number), spelt, f"x:{number}")) for number in range(6)]
    for _ in range(2):
        loader = DataLoader(samples, batch_size=2, num_workers=2, collate_fn=collate)  # type: ignore[arg-type, var-annotated]
        assert len(list(loader)) == 3
    assert take_changed_samples() == 6


@pytest.mark.parametrize("kind", ["granite3", "smollm3", "gpt-oss"])
def test_the_day_of_a_template_is_pinned(kind: str) -> None:
    text = text_of(family_tokenizer(kind), PLAIN)
    today = datetime.datetime.now(tz=datetime.UTC).astimezone()
    assert any(day in text for day in ("July 26, 2024", "26 July 2024", "2024-07-26"))
    assert str(today.year) not in text or today.year == 2024


def test_every_form_of_a_day_is_pinned() -> None:
    forms = "%Y %y %m %-m %d %-d %e %B %b %h %A %a %H %I %M %S %f %p %j %F %D %T"
    tokenizer = copy.deepcopy(text_tokenizer("chatml"))
    tokenizer.chat_template = "{{ strftime_now('" + forms + "') }}" + str(tokenizer.chat_template)
    day = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)
    assert text_of(tokenizer, PLAIN).partition("<|im_start|>")[0] == day.strftime(forms)


def test_a_row_may_give_the_day_itself() -> None:
    dated = conversation(*PLAIN.messages, date_string="1 May 2020")
    assert "Today Date: 1 May 2020" in text_of(family_tokenizer("llama3.1"), dated)


def test_a_token_that_the_template_writes_into_answers_is_kept_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    take_changed_samples()
    code = conversation(turn("user", "What?"), turn("assistant", "<|python_tag|>print(1)"))
    assert learned("llama3.1", code) == ["<|python_tag|>print(1)<|eot_id|>"]
    assert learned("qwq", INLINE)[1].startswith("So.\n</think>")
    assert take_changed_samples() == 0
    asked = conversation(turn("user", "Why <|python_tag|>?"), turn("assistant", "red"))
    assert "Why < |python_tag|>?" in text_of(family_tokenizer("llama3.1"), asked)
    stop = conversation(turn("user", "What?"), turn("assistant", "a<|eom_id|>b<|eot_id|>"))
    assert learned("llama3.1", stop) == ["a< |eom_id|>b< |eot_id|><|eot_id|>"]
    report_changed_samples()  # both of them have the same name here
    assert "1 sample spells control tokens; a space was put into each of them" in caplog.text
    caplog.clear()
    report_changed_samples()
    assert caplog.text == ""


def test_tokens_are_broken_wherever_a_sample_may_spell_them() -> None:
    end = "<|im_end|>"
    spelt = {"name": "get_hue", "arguments": {"where": f"a{end}", f"b{end}": [end]}}
    tool = {"type": "function", "function": {"name": "get_hue", "description": f"Gets{end}."}}
    sample = conversation(
        turn("user", "What?"),
        turn(
            "assistant",
            reasoning_content=f"Hm{end}",
            tool_calls=[{"type": "function", "function": spelt}],
        ),
        turn("tool", f"red{end}"),
        turn("assistant", "4 blue"),
        tools=[tool],
    )
    plain = conversation(*CALLS.messages, tools=[TOOL])
    tokenizer = family_tokenizer("qwen3")
    counts = [text_of(tokenizer, one).count(end) for one in (sample, plain)]
    assert counts[0] == counts[1]


def test_plain_text_is_learned_whole_but_for_its_first_token() -> None:
    text = Conversation("plain", (turn("assistant", "The ball is red."),), "x:1", templated=False)
    for kind in ("llama2", "chatml"):
        tokenizer = text_tokenizer(kind)
        batch = BatchEncoder(tokenizer, max_length=None)([text])
        assert batch["input_ids"][0].tolist() == tokenizer("The ball is red.")["input_ids"]
        assert batch["response_mask"][0].tolist() == [False] + [True] * (
            batch["input_ids"].shape[1] - 1
        )
    bare = copy.deepcopy(text_tokenizer("llama2"))
    bare.chat_template = None
    assert BatchEncoder(bare, max_length=None)([text])["response_mask"].any()
    one = Conversation("one", (turn("assistant", "."),), "x:1", templated=False)
    with pytest.raises(DataError, match="no token of the sample is learned"):
        BatchEncoder(text_tokenizer("chatml"), max_length=None)([one])


@pytest.mark.parametrize("kind", ["llama2", "chatml"])
def test_a_base_model_learns_the_completion_of_a_prompt_and_its_end(
    kind: str, write_rows: Any
) -> None:
    tokenizer = copy.deepcopy(text_tokenizer(kind))
    tokenizer.chat_template = None
    end = tokenizer.eos_token
    rows = [
        {"prompt": "The ball", "completion": " is red."},
        {"prompt": "The ball is", "completion": f" blue.{end}"},
        {"prompt": "A ", "chosen": "ball", "rejected": "box"},
    ]
    texts = ["The ball| is red.", "The ball is| blue.", "A |ball"]
    data = load_conversations(write_rows(rows))
    batch = BatchEncoder(tokenizer, max_length=None)([data[row] for row in range(3)])
    for row, text in enumerate(texts):
        given, _, said = text.partition("|")
        length = int(batch["attention_mask"][row].sum())
        ids, mask = batch["input_ids"][row, :length], batch["response_mask"][row, :length]
        assert ids.tolist() == tokenizer(given + said + end)["input_ids"]
        first = int(mask.int().argmax())
        assert mask[first:].all()
        assert not mask[:first].any()
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[:first], skip_special_tokens=True).strip() == given.strip()


def test_turns_need_a_template_where_prompts_do_not(write_rows: Any) -> None:
    tokenizer = copy.deepcopy(text_tokenizer("chatml"))
    tokenizer.chat_template = None
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [
        {"messages": turns},
        {"prompt": turns[:1], "completion": turns[1:]},
        {"prompt": "q", "completion": "a", "system": "Be brief."},
        {"prompt": "q", "completion": "a", "tools": [TOOL]},
        {"question": "q", "answer": "a"},
    ]
    data = load_conversations(write_rows(rows))
    encode = BatchEncoder(tokenizer, max_length=None)
    for row in range(len(rows)):
        with pytest.raises(ModelError, match="has no chat template"):
            encode([data[row]])
    templated = BatchEncoder(text_tokenizer("chatml"), max_length=None)
    pair = load_conversations(write_rows([{"prompt": "q", "completion": "a"}, rows[0]]))
    both = [templated([pair[row]])["input_ids"].tolist() for row in range(2)]
    assert both[0] == both[1]


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3_vision"])
def test_plain_text_beside_conversations_is_as_it_is_alone(family: str) -> None:
    text = Conversation("plain", (turn("assistant", "A ball. " * 9),), "x:1", templated=False)
    short = Conversation("short", (turn("assistant", "A ball."),), "x:2", templated=False)
    encoder = BatchEncoder(image_processor_for(family), max_length=None)
    mixed = [short, PLAIN, text, SHORT]
    batch = encoder(mixed)
    for row, sample in enumerate(mixed):
        alone = encoder([sample])
        length = alone["input_ids"].shape[1]
        for name, value in alone.items():
            assert (batch[name][row, :length] == value[0]).all(), name
        assert not batch["attention_mask"][row, length:].any()


_TURN = "<|im_start|>{{ message['role'] + '\n' + message['content'] }}<|im_end|>\n"
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def _chatml(body: str) -> Any:
    tokenizer = copy.deepcopy(text_tokenizer("chatml"))
    tokenizer.chat_template = "{% for message in messages %}" + body + "{% endfor %}" + _PROMPT
    return tokenizer


def test_tags_around_every_turn_teach_the_answers_alone() -> None:
    tokenizer = _chatml("{% generation %}" + _TURN + "{% endgeneration %}")
    sample = conversation(turn("system", "Be brief."), *PLAIN.messages)
    assert learned_with(tokenizer, sample) == ["It is red.<|im_end|>", "4 blue<|im_end|>"]


def test_a_template_that_never_ends_is_refused() -> None:
    tokenizer = _chatml(_TURN)
    endless = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}"
    tokenizer.chat_template = endless + str(tokenizer.chat_template)
    with pytest.raises(ModelError, match=r"does not render a question and an answer; .*recursion"):
        learned_with(tokenizer, PLAIN)


def test_tags_around_questions_teach_nothing(caplog: pytest.LogCaptureFixture) -> None:
    tagged = "{% generation %}" + _TURN + "{% endgeneration %}"
    tokenizer = _chatml(
        "{% if message['role'] == 'user' %}" + tagged + "{% else %}" + _TURN + "{% endif %}"
    )
    with pytest.raises(DataError, match="no token of the sample is learned"):
        learned_with(tokenizer, PLAIN)
    assert "tags leave an answer out" in caplog.text


def test_words_of_another_role_in_an_answer_are_refused() -> None:
    tokenizer = _chatml(
        "{% if message['role'] != 'system' %}<|im_start|>{{ message['role'] + '\n' }}"
        "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
        "{% endif %}{{ message['content'] }}<|im_end|>\n{% endif %}"
    )
    sample = conversation(turn("system", "Be brief."), *PLAIN.messages)
    with pytest.raises(DataError, match="writes what the system says into an answer"):
        learned_with(tokenizer, sample)
    assert learned_with(tokenizer, PLAIN) == ["It is red.<|im_end|>", "4 blue<|im_end|>"]


def test_a_beginning_that_a_plain_text_spells_is_not_written_twice() -> None:
    tokenizer = text_tokenizer("llama3")
    encode = BatchEncoder(tokenizer, max_length=None)
    spelt, bare = (
        Conversation("plain", (turn("assistant", text),), "x:1", templated=False)
        for text in ("<|begin_of_text|>The ball is red.", "The ball is red.")
    )
    batch = encode([spelt, bare])
    first, second = batch["input_ids"].tolist()
    assert first == second
    assert first.count(tokenizer.bos_token_id) == 1


def test_a_plain_text_that_is_rendered_already_is_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    encode = BatchEncoder(text_tokenizer("chatml"), max_length=None)
    text = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>"
    for _ in range(2):
        encode([Conversation("plain", (turn("assistant", text),), "x:1", templated=False)])
    (said,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "the text spells <|im_start|>, which opens a turn" in said
