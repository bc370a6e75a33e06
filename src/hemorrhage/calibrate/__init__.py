"""Step calibrate: the tokens that compression sees and the statistics that several methods share."""
