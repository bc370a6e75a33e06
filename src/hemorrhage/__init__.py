"""Hemorrhage bench: how a language model bleeds when it is altered or decoded differently.

The steps follow one another as the sub-packages calibrate, compress, evaluate, decode, analyze;
``docs/ARCHITECTURE.md`` is the map.
"""
