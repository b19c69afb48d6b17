"""The data room: `rows` reads prompt files, `batches` deals rows into batches, `tokens` makes tensors of them.

Only `tokens` imports torch.
"""
