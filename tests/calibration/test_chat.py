from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from optmerge.calibration.chat import ChatTemplate, Conversation, conversation
from optmerge.calibration.encode import EncodedText
from optmerge.config.tasks import SplitsConfig, TemplateConfig
from optmerge.errors import ConfigError, DataError

from .conftest import Loader, write_lines

PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGETFUL = (  # drops the first answer as soon as there is a later one, as templates of reasoning models do
    "{% for m in messages %}<{{ m.role }}>{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
THINKING = PLAIN.replace("<assistant>{% endif %}", "<assistant>[think]{% endif %}")
TALK: Conversation = (("system", "sys"), ("user", "ab?"), ("assistant", "yes"), ("user", "no?"), ("assistant", "ab ab"))


def scored(tokenizer: PreTrainedTokenizerBase, text: EncodedText) -> str:
    assert text.completion is not None
    return tokenizer.decode([i for i, mark in zip(text.ids, text.completion, strict=True) if mark])


@pytest.fixture(params=["pieces", "python_bytes"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """One with offsets, one without."""
    return request.getfixturevalue(request.param)


def with_template(
    tokenizer: PreTrainedTokenizerBase, template: str | None, monkeypatch: pytest.MonkeyPatch
) -> PreTrainedTokenizerBase:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    return tokenizer


@pytest.mark.parametrize("template", [PLAIN, MARKED, THINKING])
def test_only_the_assistants_turns_are_scored(
    tokenizer: PreTrainedTokenizerBase, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if template == MARKED and not tokenizer.is_fast:
        template = PLAIN
    chat = ChatTemplate(with_template(tokenizer, template, monkeypatch), where="tasks.chat")
    (text,) = chat.encode([TALK])
    rendered = "<system>sys</s><user>ab?</s><assistant>yes</s><user>no?</s><assistant>ab ab</s>"
    assert tokenizer.decode(text.ids).replace("\n", "") == rendered
    assert scored(tokenizer, text) == "yes</s>ab ab</s>"


def test_marks_and_prefixes_agree(pieces: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        ChatTemplate(with_template(pieces, template, monkeypatch), where="tasks.chat").encode([TALK, TALK[1:3]])
        for template in (PLAIN, MARKED)
    ]
    assert texts[0] == texts[1]


def test_a_template_that_rewrites_earlier_turns_is_refused(
    pieces: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = ChatTemplate(with_template(pieces, FORGETFUL, monkeypatch), where="tasks.chat")
    (text,) = chat.encode([TALK[1:3]])
    assert scored(pieces, text) == "yes</s>"
    with pytest.raises(ConfigError, match="rewrites earlier turns"):
        chat.encode([TALK])


def test_a_tokenizer_without_a_template_is_refused(
    pieces: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="the tokenizer has none"):
        ChatTemplate(with_template(pieces, None, monkeypatch), where="tasks.chat")


def test_a_conversation_that_the_template_refuses(
    pieces: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + PLAIN
    chat = ChatTemplate(with_template(pieces, strict, monkeypatch), where="tasks.chat")
    with pytest.raises(DataError, match=re.escape("that begins with 'system: sys': no system turns")):
        chat.encode([TALK])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hello", "holds a str; expected a list of messages"),
        ([{"role": "user", "content": "a"}, {"role": "user"}], "message 2 in column 'messages'"),
        ([{"role": "user", "content": ["a"]}], "the texts `role` and `content`"),
        (["a"], "message 1 in column 'messages' is 'a'"),
    ],
)
def test_what_is_no_conversation(value: object, message: str) -> None:
    with pytest.raises(DataError, match=f"^d.jsonl, row 3: .*{re.escape(message)}"):
        conversation(value, "messages", "d.jsonl, row 3")


def test_conversations_of_a_file(
    tmp_path: Path, load: Loader, pieces: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_template(pieces, PLAIN, monkeypatch)
    talks = [[{"role": "user", "content": f"ab {i}"}, {"role": "assistant", "content": "yes"}] for i in range(6)]
    rows = [*({"talk": talk} for talk in talks), {"talk": talks[0]}, {"talk": [{"role": "user", "content": "x"}]}]
    write_lines(tmp_path / "films.jsonl", rows)
    options = {"kind": "causal-lm", "tokenizer": pieces, "splits": SplitsConfig(fit=2, select=2, report=2)}
    calibration = load(template="chat", messages="talk", keep_labels=frozenset({"report"}), **options)
    assert calibration.notes == [
        "films: 1 of 8 rows have no text and are left out.",
        "films: 1 exact duplicates are left out.",
    ]
    (batch,) = calibration.tasks["films"].splits["report"].batches(batch_tokens=4096)
    assert batch.targets is not None
    assert pieces.decode(batch.targets) == "yes</s>" * 2
    # The same, out of two columns.
    columns = [{"q": talk[0]["content"], "a": talk[1]["content"]} for talk in talks]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, columns)))
    template = TemplateConfig(prompt="{q}", completion="{a}", chat=True)
    paired = load("pairs.jsonl", template=template, keep_labels=frozenset({"report"}), **options)
    assert paired.fingerprint() == calibration.fingerprint()
