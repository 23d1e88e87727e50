"""A neural language model of the Brown corpus, with the output layers and training losses made for many words."""
