"""The run folder, and the machine and processes that work on it."""
