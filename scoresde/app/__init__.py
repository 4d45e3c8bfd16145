"""The commands: one file a mode of main.py."""
