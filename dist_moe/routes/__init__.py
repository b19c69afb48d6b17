"""Routes that a server has recorded: which experts each token was sent to. Read from files, checked, and counted.

Without torch. docs/servers.md describes the files.
"""
