"""Task files of the lm-evaluation-harness: what is trained and what is graded."""
