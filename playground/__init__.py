"""What can be tried without any download."""
