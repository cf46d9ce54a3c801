"""Rows that are fit to be trained on, in splits that do not leak."""
