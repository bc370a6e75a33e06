"""Step texts: corpora as documents and tokens."""
