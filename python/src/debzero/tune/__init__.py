"""`debzero tune`: the fastest settings that fit, found with a few short trials and written into the job file."""
