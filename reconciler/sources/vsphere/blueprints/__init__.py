"""A machine on paper: captured with its image, written as a folder, or made again by ``rebuilding``."""
