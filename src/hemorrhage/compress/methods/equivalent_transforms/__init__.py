"""Methods that change the weights of a model and not what it computes, for others that round it after them."""
