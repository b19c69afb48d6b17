"""dist_moe: find the experts of a mixture-of-experts model that answer for unsafe behaviour, and repair only them.

Importing the package is cheap: it loads no torch, no transformers, no zarr and no engine. Import each room by name.
"""

import logging

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a library prints nothing unasked
