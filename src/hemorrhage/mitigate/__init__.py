"""Calibration of decoding: what can be put right on an altered model's logits, without touching its weights."""
