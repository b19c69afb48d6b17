"""Older pickles, read without running anything: `machine` reads the file, `decode` makes arrays and tables of what it
says, `older` finds out what they are, and `convert` makes tables and a mask store of them.
"""
