"""Commands of the command line that have more to say than fits `cli.py`: each file adds its own to the parser."""
