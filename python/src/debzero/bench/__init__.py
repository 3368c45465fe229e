"""`debzero bench`: what each sharding costs and saves, measured for one's own job on one's own machine.

Measuring is the package measure's work; here are the table of configurations, the results and their pages.
"""
