"""Who answers: models on the items of a task."""
