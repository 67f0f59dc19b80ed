"""What the pages show: samples, runs and songs as they are on disk, and pictures of them."""
