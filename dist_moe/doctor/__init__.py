"""`dist-moe doctor`: whether a machine is fit for a run. A check is one function; each runs in a process of its own."""
