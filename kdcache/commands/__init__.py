"""The sub-commands, one a file: from words on the command line to a call of a room below."""
