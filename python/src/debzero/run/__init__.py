"""The output folder of a run: state and lock, checkpoints, report, card, progress, metrics exporters, status and stop.

What is written to or read from that folder is here, and nowhere else; records has the types of its JSON files.
"""
