"""Tokenizers of every kind that models have, trained on a few lines, each with the special tokens of all templates."""

from collections.abc import Callable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|im_start|>",
    "<|im_end|>",
    "[gMASK]",
    "<sop>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|return|>",
    "[INST]",
    "[/INST]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<think>",
    "</think>",
]
LINES = [
    "user assistant system final Knowledge Question: Answer: END of this text. \n\n",
    "How do I bake a cake? Mix flour, eggs and sugar; then bake it for an hour. I can't help with that.",
    "Hello there 12345",
    "Ein schöner Tag — naïve café 🙂, 世界! Schreib mir bitte,  please.",
]
TEKKEN = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _bpe(**extra: object) -> trainers.Trainer:
    return trainers.BpeTrainer(vocab_size=460, special_tokens=SPECIAL, show_progress=False, **extra)


def _bytes(backend: Tokenizer, *before: pre_tokenizers.PreTokenizer, use_regex: bool = True) -> trainers.Trainer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, byte_level])
    backend.decoder = decoders.ByteLevel()
    return _bpe(initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def byte_level() -> tuple[Tokenizer, trainers.Trainer]:
    backend = Tokenizer(models.BPE())
    return backend, _bytes(backend)


def tekken() -> tuple[Tokenizer, trainers.Trainer]:
    backend = Tokenizer(models.BPE())
    return backend, _bytes(backend, pre_tokenizers.Split(Regex(TEKKEN), "isolated"), use_regex=False)


def _metaspace(scheme: str) -> Callable[[], tuple[Tokenizer, trainers.Trainer]]:
    def made() -> tuple[Tokenizer, trainers.Trainer]:
        backend = Tokenizer(models.BPE(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
        return backend, _bpe()

    return made


def prepend() -> tuple[Tokenizer, trainers.Trainer]:
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return backend, _bpe()


def unigram() -> tuple[Tokenizer, trainers.Trainer]:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return backend, trainers.UnigramTrainer(
        vocab_size=200, unk_token="<unk>", special_tokens=SPECIAL, show_progress=False
    )


def wordpiece() -> tuple[Tokenizer, trainers.Trainer]:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend, trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)


KINDS: dict[str, Callable[[], tuple[Tokenizer, trainers.Trainer]]] = {
    "byte_level": byte_level,
    "tekken": tekken,
    "metaspace_always": _metaspace("always"),
    "metaspace_first": _metaspace("first"),
    "metaspace_never": _metaspace("never"),
    "prepend": prepend,
    "unigram": unigram,
    "wordpiece": wordpiece,
}


def made(kind: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    backend, trainer = KINDS[kind]()
    backend.train_from_iterator(LINES * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=chat_template
    )
    fast.add_special_tokens({"additional_special_tokens": [name for name in SPECIAL[3:] if "think" not in name]})
    return fast
