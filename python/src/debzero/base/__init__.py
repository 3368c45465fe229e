"""What every package needs and nobody owns: errors, files, text for people, the environment, stack.yml, systemd.

It imports nothing of debzero's. A helper belongs here when two packages above need it and it knows nothing of jobs.
"""
