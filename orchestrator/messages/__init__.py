"""What is shown and recorded, as text: numbers, errors, nothing secret."""
