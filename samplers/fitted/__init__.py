"""Tables of a few evaluations, fitted to one model."""
