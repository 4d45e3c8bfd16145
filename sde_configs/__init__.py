"""Configurations: `default`, and one short recipe a file."""
