"""What runs on a GPU in one kernel of our own. Each has a version in plain torch, which it is tested against."""
