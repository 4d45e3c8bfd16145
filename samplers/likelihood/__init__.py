"""Data to noise along the probability flow and back, and the density of data."""
