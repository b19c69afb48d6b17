"""Reads a checkpoint's config.json and generation_config.json as transformers does, with one-line errors."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig, PreTrainedConfig

from dist_moe.errors import UserError, refused_by_library, shown
from dist_moe.weights.directory import CONFIG, read_json

GENERATION = "generation_config.json"
ADVICE = "copy or download the checkpoint again, or correct its config.json"
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
MOST_LAYERS = 1000
"""Limit on the number of layers, several times that of any model."""


def refused_by_transformers(file: Path) -> AbstractContextManager[None]:
    """Context manager: an error of transformers while it reads `file`, or builds a model from it, becomes one line."""
    return refused_by_library(f"{file}: not what transformers {transformers.__version__} reads", ADVICE)


def read_config(path: Path, *, weights: bool = True) -> PreTrainedConfig:
    """The configuration of a model directory; without `weights`, of one whose weights nobody will read.

    Raises:
        UserError: transformers cannot read it, it is not of a causal language model, or the model cannot be trained.
    """
    file = path / CONFIG
    raw = read_json(file)
    _check_model_type(file, raw)
    _check_layer_counts(file, raw)
    with refused_by_transformers(file):
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    text = config.get_text_config()
    for name in ("hidden_size", "vocab_size", "num_hidden_layers"):
        number = getattr(text, name, None)
        if type(number) is not int or number < 1:
            raise UserError(f"{file}: {name} is {shown(number)}, expected a positive whole number: {ADVICE}")
    for part in (config, text) if weights else ():
        _refuse_packed(file, getattr(part, "quantization_config", None))
    return config


def read_generation_config(path: Path) -> GenerationConfig | None:
    """The contents of generation_config.json; None if there is none.

    Raises:
        UserError: transformers cannot read it, or an end token is not a number.
    """
    file = path / GENERATION
    if not file.is_file():
        return None
    read_json(file)
    with refused_by_transformers(file):
        config: GenerationConfig = GenerationConfig.from_pretrained(path, local_files_only=True)
    ends = config.eos_token_id
    if not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends]) if end is not None):
        raise UserError(f"{file}: eos_token_id is {shown(ends)}, expected a token's number or a list of them")
    return config


def _check_model_type(file: Path, raw: dict[str, Any]) -> None:
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise UserError(f"{file}: model_type is {shown(model_type)}, expected the name of a model family: {ADVICE}")
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        own = " (code that a checkpoint brings along, auto_map, is never run)" if "auto_map" in raw else ""
        raise UserError(
            f"{file}: model type {shown(model_type)} is not supported: transformers {transformers.__version__} has no "
            f"causal language model for it{own}: point model.path at an MoE checkpoint that AutoModelForCausalLM reads"
        )


def _check_layer_counts(file: Path, raw: dict[str, Any]) -> None:
    """Refuse absurd numbers of layers before transformers builds a list of them."""
    text = raw.get("text_config")
    for part in (raw, text if isinstance(text, dict) else {}):
        for name in LAYER_COUNTS:
            number = part.get(name)
            if type(number) is int and not 1 <= number <= MOST_LAYERS:
                raise UserError(f"{file}: {name} is {number}, expected 1 to {MOST_LAYERS}: {ADVICE}")


def _refuse_packed(file: Path, quantization: Any) -> None:
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
    packed = f"{file}: quantization_config: weights packed as {str(method).upper()} cannot be trained: "
    if method == "mxfp4":
        raise UserError(
            f"{packed}unpack them once: from_pretrained(..., quantization_config=Mxfp4Config(dequantize=True)), "
            "then save_pretrained"
        )
    raise UserError(f"{packed}use a checkpoint that is not quantized")
