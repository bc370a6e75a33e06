"""The decode step: one variant, every strategy, closed-ended and open-ended prompts.

A strategy ``name`` is the module ``hemorrhage/decode/strategies/name.py`` with ``Settings`` (pydantic; ``label`` and
``deterministic``) and ``parameters``, which returns the ``Decoding`` of ``generation``; it may have ``describe``, what
the settings of its texts say besides its own. ``sweep`` runs them,
``prompts`` chooses what they continue.
"""
