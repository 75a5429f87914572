"""From weights to codes: how scales are found, and the quantizers that also look at text."""
