"""`debzero check`: everything that can be known before ranks start, for a job file or DeepSpeed's own JSON.

Other commands ask checks.examine for a job that has been checked.
"""
