"""What several methods use: covers, clusters, grids, and what is made of a question. Each method is a file above."""
