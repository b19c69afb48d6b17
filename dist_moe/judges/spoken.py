"""What of an answer is said to the user: without thoughts, other channels, special tokens and markdown.

Marks are those of the chat templates of Qwen3, GLM-4.5, gpt-oss, Mixtral, Llama, DeepSeek, Gemma and their kin. A
thought that the template has opened in the prompt ends with a mark that has no beginning; one that was cut off has no
end. gpt-oss's channels are read with their special tokens and without.
"""

from __future__ import annotations

import re
import unicodedata

from dist_moe.judges.judge import Answered

THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""Beginning and end of what a model says to itself."""
TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|return|>",
    "<|end|>",
    "<|call|>",
    "<|user|>",
    "<|observation|>",
    "<|end▁of▁sentence|>",
    "<end_of_turn>",
    "</s>",
    "<eos>",
)
"""Where the model's turn is over: what it writes behind one is no part of the answer."""
OTHER_MARKS = ("<s>", "<bos>", "<pad>", "<unk>", "<start_of_turn>", "[INST]", "[/INST]", "</answer>", "<answer>")
_FINAL = re.compile(r"<\|channel\|>\s*final\b.*?<\|message\|>", re.DOTALL)
_PLAIN_CHANNEL = re.compile(r"\s*(analysis|commentary)(?=[A-Z])")
_MARK = re.compile(r"<\|[^|<>\n]{1,40}\|>|" + "|".join(map(re.escape, OTHER_MARKS)))
_ROLE = re.compile(r"\s*(?:assistant|model)\s*\n")
_CHARACTERS = str.maketrans(
    dict.fromkeys("‘’‛′ʼ`´", "'") | dict.fromkeys("“”„‟″«»", '"') | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", "")
)
_LINE_MARK = re.compile(r"^[ \t]*(?:>[ \t]*|#{1,6}[ \t]+|[-*+•·–][ \t]+|\(?\d{1,2}[.)][ \t]+)+", re.MULTILINE)


def spoken(answered: Answered) -> str:
    """The text that the user reads, in NFKC, with straight quotes, without markdown; "" if there is none."""
    return plain(unmarked(answered.text, answered.asked))


def unmarked(text: str, asked: str = "") -> str:
    """`text` without thoughts, other channels and special tokens. `asked` is the prompt as the model has read it."""
    text = text.replace("｜", "|")
    text = _without_thoughts(_final_channel(text), asked)
    text = _first_turn(text)
    named = _MARK.sub("\0", text)
    if named.lstrip().startswith("\0"):  # a mark in front may be followed by the name of who speaks
        named = _ROLE.sub("", named.lstrip(" \t\r\n\0"), count=1)
    return named.replace("\0", "").strip()


def plain(text: str) -> str:
    """NFKC, straight quotes, no marks of markdown, and quotation marks around the whole text taken away."""
    text = unicodedata.normalize("NFKC", text.replace("```", " ").translate(_CHARACTERS)).translate(_CHARACTERS)
    text = _LINE_MARK.sub("", re.sub(r"\*+|(?<!\w)_+|_+(?!\w)", "", text)).strip()
    quoted = re.fullmatch(r'"([^"]*)"', text)
    return quoted[1].strip() if quoted else text


def _final_channel(text: str) -> str:
    if "<|channel|>" in text:
        found = list(_FINAL.finditer(text))
        return text[found[-1].end() :] if found else ""
    if _PLAIN_CHANNEL.match(text):  # special tokens were lost
        return text.rpartition("assistantfinal")[2] if "assistantfinal" in text else ""
    return text


def _without_thoughts(text: str, asked: str) -> str:
    for begin, end in THOUGHTS:
        is_open = asked.rstrip().endswith(begin)
        if end in text:
            text = text.rpartition(end)[2]
        elif is_open or begin in text:
            text = "" if is_open else text.partition(begin)[0]
    return text


def _first_turn(text: str) -> str:
    """Up to the first end of a turn that has a letter or digit before it."""
    ends = re.compile("|".join(map(re.escape, TURN_ENDS)))
    for found in ends.finditer(text):
        if any(character.isalnum() for character in _MARK.sub("", text[: found.start()])):
            return text[: found.start()]
    return ends.sub("", text)
