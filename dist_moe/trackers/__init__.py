"""Trackers: they report the record of each step. One module each, which registers itself; `train.trackers` names
them."""
