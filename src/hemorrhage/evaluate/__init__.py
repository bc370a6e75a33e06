"""evaluate: how much an alteration hurt, token by token and item by item, beside the base model."""
