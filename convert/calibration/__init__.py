"""Quantization that is calibrated: on what a text makes each layer see.

Owns the numbers (`hessian`, `grid`, `gptq`, `refit`, `layer`) and the way of the text through
the model (`capture`, `blocks`). Knows nothing of flags.
"""
