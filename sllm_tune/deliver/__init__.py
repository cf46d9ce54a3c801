"""What leaves a run folder: the specialist in the forms that others load, each checked against what was scored."""
