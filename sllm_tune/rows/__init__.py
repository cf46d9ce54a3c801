"""Rows of files: read, in whatever form they come."""
