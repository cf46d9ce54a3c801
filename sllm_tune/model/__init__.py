"""Base models: found, loaded, merged, and what is known of where they come from."""
