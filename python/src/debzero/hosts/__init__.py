"""Several hosts that train one job: the file that names them, the channel between their launchers, and what
`debzero doctor --job` finds out between them."""
