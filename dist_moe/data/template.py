"""Renders a chat template as transformers does, except that the date is fixed.

It is transformers' own compiled template that renders. `apply_chat_template` would give it the same text of the same
messages, and takes twice as long, as it copies and looks into everything at each call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

from jinja2 import Template, meta
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from dist_moe.data.rows import Message
from dist_moe.errors import UserError, refused_by_library, shown

DAY = date(2025, 1, 1)
"""Default date of templates."""
OURS = {"messages", "add_generation_prompt", "continue_final_message"}
"""Variables that `apply_chat_template` itself gives to a template."""
MARK = "\ue0f0{}\ue0f1"
"""Marker that stands for the text of a message, with its number; made of private-use characters, which templates leave
alone."""


class ChatTemplate:
    """A chat template: the tokenizer's own, or `text`.

    `today` is the date that `strftime_now` gives to the template; `variables` are further variables that it may use.

    Raises:
        UserError: there is no template, it is not valid Jinja, or it does not use one of the variables.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: str | None = None,
        today: date = DAY,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.text = tokenizer, template_text(tokenizer, text)
        self.date_asked = False
        self._marked: dict[tuple[tuple[str, ...], bool], str] = {}
        self._noon = datetime.combine(today, time(12))
        with refused_by_library(
            f"{_place(tokenizer)}: the chat template is not valid Jinja",
            "correct it, or name another in data.chat_template",
        ):
            compiled = _compile_jinja_template(self.text)
        self.variables = dict(variables or {})
        _check_variables(self.variables, compiled, self.text, tokenizer)
        compiled.globals["strftime_now"] = self._now
        self._compiled, self._given = compiled, {**tokenizer.special_tokens_map, **self.variables}

    def render(self, messages: Sequence[Message], source: str, *, to_answer: bool) -> str:
        """The text of a conversation; with `to_answer` up to where the model starts to answer.

        Raises:
            UserError: the template fails on the conversation; names `source`.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        with refused_by_library(
            f"{source}: the chat template fails on this row",
            "change the row, or the template (the tokenizer's own, or data.chat_template)",
        ):
            return self._compiled.render(
                messages=turns, tools=None, documents=None, add_generation_prompt=to_answer, **self._given
            )

    def marked(self, messages: Sequence[Message], source: str, *, to_answer: bool) -> str:
        """Like `render`, with a `MARK` in place of each message's text; computed once for each sequence of roles."""
        roles = tuple(message.role for message in messages)
        if (roles, to_answer) not in self._marked:
            marks = [Message(role, MARK.format(number)) for number, role in enumerate(roles)]
            self._marked[roles, to_answer] = self.render(marks, source, to_answer=to_answer)
        return self._marked[roles, to_answer]

    def _now(self, form: str) -> str:
        self.date_asked = True
        return self._noon.strftime(form)


def template_text(tokenizer: PreTrainedTokenizerBase, text: str | None) -> str:
    """The Jinja text of the template in use.

    Raises:
        UserError: there is none.
    """
    try:
        return tokenizer.get_chat_template(text)
    except ValueError as error:
        raise UserError(
            f"{_place(tokenizer)}: the tokenizer has no chat template (or no default one); "
            "name a Jinja file in data.chat_template"
        ) from error


def _check_variables(
    variables: Mapping[str, Any], compiled: Template, text: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    given = {*OURS, *compiled.globals, *tokenizer.special_tokens_map}
    asked = meta.find_undeclared_variables(compiled.environment.parse(text)) - given
    for name in variables:
        if name not in asked:
            there = f"it asks for {shown(', '.join(sorted(asked)))[1:-1]}" if asked else "it asks for none"
            raise UserError(f"data.template_kwargs: the chat template asks for no variable {shown(name)}; {there}")


def _place(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.name_or_path)
