"""Training: adapters, and healing of what was cut."""
