"""dist_moe: find the experts of a mixture-of-experts model that answer for unsafe behaviour, and repair only them.

Importing the package is cheap: it loads no torch, no transformers, no zarr and no engine. Import each room by name.
"""

__version__ = "0.1.0"
