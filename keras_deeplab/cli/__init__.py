"""The commands: each parses its arguments, calls public functions and prints what they return."""
