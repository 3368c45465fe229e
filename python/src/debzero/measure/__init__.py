"""One measured run, as bench and tune need it: its job file, its process watched from outside, and the facts it depends
on."""
