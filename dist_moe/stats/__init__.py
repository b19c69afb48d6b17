"""Statistics of routing counts, and the selection of experts from them, as pure functions on NumPy arrays; no torch.

Legend of array names: B batches, P prompts, L MoE layers (dense layers have no row), E routed experts per layer.
`a_safe_n`: fraction of the safe prompts' counted tokens for which an expert is in the top-k; `a_unsafe_n` likewise;
`risk_diff = a_unsafe_n - a_safe_n`. An arm is the safe or the unsafe prompts of a batch.
"""
