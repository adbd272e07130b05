"""What becomes of a recorded run: files of its own, a registered model, the same run again."""
