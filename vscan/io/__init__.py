"""Files in: checkpoints, weights, images, videos, and the ranks that share the work."""
