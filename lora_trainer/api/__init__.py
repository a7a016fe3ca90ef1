"""The HTTP routes, for programs: data sets, jobs, and what can be chosen."""
