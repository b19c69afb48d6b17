"""Where a step's record goes when it is done: one module each, which registers itself; `train.trackers` names them."""
