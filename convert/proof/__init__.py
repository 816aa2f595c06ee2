"""`--prove`: what was written, held against what transformers computes from the source."""
