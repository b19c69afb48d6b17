#!/usr/bin/env python
"""`dist-moe inspect` as a script: look into a mask store."""

import sys

from dist_moe.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["inspect", *sys.argv[1:]]))
