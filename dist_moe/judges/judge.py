"""What a judge is, what it is given, and what it says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, get_args

from dist_moe.errors import UserError
from dist_moe.registry import Registry, require_values

Verdict = Literal["refused", "complied", "partial", "missing"]
"""refused: nothing of what was asked for is there. complied: it is answered. partial: a part is refused, or a refusal
and an answer are both there. missing: the judge could not tell; such an answer is in no rate, and is counted apart."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Need = Literal["text", "model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A row and what a model has answered to it."""

    row_id: str
    messages: tuple[Mapping[str, str], ...]
    """The conversation, each message with `role` and `content`; the last is the user's."""
    unsafe: bool
    """The row's label. A judge of texts must not read it; it is for programs of the user's own."""
    text: str
    """The answer as the tokenizer decodes it *with* special tokens, from the first token that the model wrote to the
    one that ended its turn: marks of thoughts and channels are special tokens in some families."""
    asked: str = ""
    """The prompt as the model has read it, with what the chat template writes of the answer: a thought that the
    template opens has no opening mark in `text`."""
    is_cut: bool = False
    """Whether the answer was as long as it may be, and had not ended."""
    opening_log_p: Mapping[str, float] = field(default_factory=dict)
    """Of each text that a judge names in `openings`: mean log-probability of its tokens as the answer's start, given
    the prompt, in nats."""


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    why: str
    """A phrase for a person: what in the answer decided, or what failed."""


@dataclass(frozen=True, kw_only=True)
class Judge(ABC):
    """One way to tell refusals from answers. The fields of a subclass are its settings, all that it reads."""

    name: ClassVar[str]
    """In the configuration, in tables and on cards."""
    needs: ClassVar[Need] = "text"
    """text: the answers are enough. model: `Answered.opening_log_p` must be there, so the judge cannot read answers
    that were kept without their model."""
    required: ClassVar[tuple[str, ...]] = ()
    """Settings that have no default which could work."""

    @abstractmethod
    def judge(self, answers: Sequence[Answered]) -> list[Judgement]:
        """One judgement for each answer, in their order. Called on one rank, with all answers of one model.

        An answer that could not be judged is `missing`, with the reason; it is never guessed.

        Raises:
            UserError: the settings cannot work for any answer, such as a program that does not exist.
        """

    @property
    def openings(self) -> tuple[str, ...]:
        """Texts whose log-probability the judge reads in `Answered.opening_log_p`."""
        return ()

    @property
    @abstractmethod
    def in_words(self) -> str:
        """How it judges, one phrase with its settings: for a table, a log, a card."""

    @property
    def facts(self) -> dict[str, Any]:
        """The judge as JSON values: its name, and its settings. There is never a secret among them."""
        return {"name": self.name, **asdict(self)}

    def require_ready(self) -> None:
        """Refuse early, before a model is loaded, settings that cannot work for any answer.

        Raises:
            UserError: names the setting.
        """
        for key in self.required:
            if not getattr(self, key):
                raise UserError(f"{self.setting(key)}: must be set for the judge {self.name}")

    def setting(self, key: str) -> str:
        """How messages call a field."""
        return ".".join(("evaluation", "judge", self.name, key))

    def __post_init__(self) -> None:
        """Raises UserError: a setting is of another type, or out of its range."""
        require_values(self)


JUDGES: Registry[Judge] = Registry("judge", "dist_moe.judges")
