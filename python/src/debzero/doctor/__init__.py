"""`debzero doctor`: is this host able to train? One chain of checks, from the PCI device to a ZeRO step.

host.py examines the host up to a driver that answers: probe.py gathers the facts, gpu_checks.py judges them (and says
how to add a GPU state). software.py checks compiler, torch and DeepSpeed; trials.py tries what the host can do.
chain.py runs them in order, command.py prints the results. Imports only base; host.py and what it imports use the
standard library alone.
"""
