"""Translation from English to French by an encoder and a decoder, with additive attention and without."""
