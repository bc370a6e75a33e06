"""The decode step: one variant, every strategy, closed-ended and open-ended prompts.

A strategy ``name`` is the module ``hemorrhage/decode/name.py`` with ``Settings`` (pydantic; ``label`` and
``deterministic``) and ``parameters``, which ``generation.generate`` goes by. ``sweep`` runs them, ``prompts`` chooses
what they continue.
"""
