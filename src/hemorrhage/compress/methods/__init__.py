"""Compression methods by family. One method, one module."""
