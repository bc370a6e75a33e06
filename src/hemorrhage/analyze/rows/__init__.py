"""The tidy rows of the results, and tables made of them."""
