"""Steps that raise small models: their text, their tokenizer, and the training itself."""
