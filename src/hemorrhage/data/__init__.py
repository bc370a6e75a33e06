"""Corpora, tokenised, and generated probe tasks."""
