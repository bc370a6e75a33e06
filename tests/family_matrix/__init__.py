"""What the bench can do with each family of models: every step on a small model of it, beside plain transformers.

``study`` makes the outputs of the steps, ``columns`` looks at them, ``page`` writes docs/families.md.
"""
