"""A stand-in for cuda-python, see cudart."""
