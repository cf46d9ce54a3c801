"""Replay: the base's own replies to everyday instructions, learned beside the domain."""
