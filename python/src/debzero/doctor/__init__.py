"""`debzero doctor`: is this host able to train? One chain of checks, from the PCI device to a ZeRO step."""
