"""What the pages are made from: samples, runs and songs as they lie on disk, and pictures of them."""
