"""What follows from the models of one study together: the damage by what the models differ in, a model the unit."""
