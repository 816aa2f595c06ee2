"""`--quality`: what quantization cost, measured beside the source and rounding to nearest."""
