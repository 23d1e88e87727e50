"""WaveNet: dilated causal convolutions over mu-law codes of speech, and their generation as one native loop."""
