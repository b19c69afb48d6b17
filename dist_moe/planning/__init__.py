"""What a training run needs before a weight is read: memory of each rank, exchanges, time and disk.

`outline` is a model as numbers, `trace` finds them for any model, `memory`, `traffic` and `disk` say what a `Job` on it
needs, `fit` which GPUs have room for it, and what would make it fit. Only `trace` and `live` need torch.
"""
