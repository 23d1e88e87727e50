"""Speech recognition: an LSTM with CTC over characters on log-mel frames, beside word HMMs with Gaussian mixtures."""
