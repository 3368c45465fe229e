"""The job file: what it may hold, how it is read, and the arithmetic of its batch.

Only the file counts here; what a job comes to on a host is the package resolve's question.
"""
