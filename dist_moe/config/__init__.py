"""The run configuration: its schema, and how it is read and written. Loads no torch and no transformers."""

from dist_moe.config.load import load_config, save_config
from dist_moe.config.schema import Config

__all__ = ["Config", "load_config", "save_config"]
