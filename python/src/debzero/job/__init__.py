"""The job file: what it may hold, how it is read, and the arithmetic of its batch.

Only the file counts here; what a job means on a host is decided in the package resolve.
"""
