"""N-gram language models of English: from counts to a compiled look-up."""
