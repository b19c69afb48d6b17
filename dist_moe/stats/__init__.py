"""From routing counts to unsafe experts: pure functions of NumPy arrays and pandas tables, no torch.

Legend of array names: B batches, P prompts, L MoE layers (dense layers have no row), E routed experts per layer.
`a_safe_n`: how often an expert is in the top-k, per counted token of the safe prompts; `a_unsafe_n` likewise;
`risk_diff = a_unsafe_n - a_safe_n`.
"""
