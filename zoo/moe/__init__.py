"""A language model of four kinds of text whose feed-forward layer is a hard mixture of experts."""
