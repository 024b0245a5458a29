r"""Conversations through a tokenizer's chat template; only what the assistant says is scored.

    chat = ChatTemplate(tokenizer, where="tasks.chat")
    chat.encode([(("user", "2 + 2?"), ("assistant", "4"))])

Where the template marks the assistant's text itself (``{% generation %}``), those marks count. Elsewhere an assistant's
turn is what the conversation up to it adds to the conversation before it, beyond the header that asks for an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optmerge.calibration.encode import EncodedText, Span, encode_spans
from optmerge.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = tuple[tuple[str, str], ...]  # role and content of every message

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def conversation(value: object, column: str, where: str) -> Conversation:
    """A cell as a conversation; an empty one is ``()``.

    Args:
        value: A list of ``{"role": ..., "content": ...}``, or None.
        column: Its column.
        where: The row, for messages.

    Raises:
        DataError: It is something else.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(
            f"{where}: column {column!r} holds a {type(value).__name__}; expected a list of messages, such as "
            '[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}].'
        )
    messages = []
    for number, message in enumerate(value, 1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(
                f"{where}: message {number} in column {column!r} is {str(message)[:80]!r}; expected an object with the "
                "texts `role` and `content`."
            )
        messages.append((role, content))
    return tuple(messages)


class ChatTemplate:
    """Renders and tokenises conversations.

    Args:
        tokenizer: Of the base or an expert.
        where: The task, for messages.

    Raises:
        ConfigError: The tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, where: str) -> None:
        self._tokenizer = tokenizer
        self._where = where
        try:
            template = tokenizer.get_chat_template()
        except ValueError:
            raise ConfigError(
                f"{where}.template asks for a chat template, and the tokenizer has none. Set `tokenizer` to an expert "
                "whose tokenizer has one, or give a template of your own: {prompt: ..., completion: ...}."
            ) from None
        self._marked = bool(_MARKS.search(template)) and tokenizer.is_fast

    def encode(self, conversations: Sequence[Conversation]) -> list[EncodedText]:
        """Tokens of every conversation; the assistant's are scored.

        Raises:
            DataError: The template refuses a conversation.
            ConfigError: The template rewrites earlier turns, and does not mark the assistant's.
        """
        if self._marked:
            return [self._by_marks(messages) for messages in conversations]
        texts = [self._render(messages) for messages in conversations]
        spans = [self._spans(messages, text) for messages, text in zip(conversations, texts, strict=True)]
        return encode_spans(self._tokenizer, texts, spans, add_special_tokens=False)  # the template has them

    def _by_marks(self, messages: Conversation) -> EncodedText:
        output = self._apply(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids, marks = list(output["input_ids"]), [bool(mark) for mark in output["assistant_masks"]]
        return EncodedText(ids, None, [False, *marks[1:]])

    def _spans(self, messages: Conversation, text: str) -> list[Span]:
        """Where the assistant's turns stand in the rendered conversation, white space after them left out."""
        spans = []
        for place, (role, _) in enumerate(messages):
            if role != "assistant":
                continue
            asked = self._render(messages[:place], add_generation_prompt=True)
            answered = text if place + 1 == len(messages) else self._render(messages[: place + 1])
            begin = _shared(asked, answered)
            if not text.startswith(answered) or begin < len(self._render(messages[:place])):
                raise ConfigError(
                    f"{self._where}.template: the tokenizer's chat template rewrites earlier turns of a conversation "
                    f"once there are later ones, so that the assistant's text cannot be told from the rest (turn "
                    f"{place + 1} of {_beginning(messages)}). Use a template that marks it with "
                    "{% generation %}, or give a template of your own: {prompt: ..., completion: ...}."
                )
            spans.append((begin, len(answered.rstrip())))
        return spans

    def _render(self, messages: Conversation, *, add_generation_prompt: bool = False) -> str:
        if not messages and not add_generation_prompt:
            return ""
        text: str = self._apply(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        return text

    def _apply(self, messages: Conversation, **options: Any) -> Any:
        from jinja2 import TemplateError

        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            return self._tokenizer.apply_chat_template(turns, **options)
        except TemplateError as problem:
            raise DataError(
                f"{self._where}: the tokenizer's chat template refuses the conversation {_beginning(messages)}: "
                f"{' '.join(str(problem).split())}. Mend or remove it."
            ) from None


def _shared(one: str, other: str) -> int:
    """How many leading characters two texts share."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _beginning(messages: Conversation) -> str:
    """How a conversation begins, for messages."""
    if not messages:
        return "that begins with the assistant"
    role, content = messages[0]
    return f"that begins with {f'{role}: {content}'[:60]!r}"
