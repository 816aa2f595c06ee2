"""Quantization that is calibrated: on what a text makes each layer see.

The text is a file's (`text`), or the model writes it (`own`).

Owns the numbers (`hessian`, `grid`, `gptq`, `refit`), the choice of each layer (`layer`, `judge`),
its kinds (`inputs`, `wide`, `experts`, `tables`) and the way of the text through the model
(`probe`, `ways`, `block`, `calibrate`). Knows nothing of flags.
"""
