"""Jobs: one file for each command, holding the command's Python twin.

A twin has its command's name and options, returns plain data (or a `Run`) and prints nothing;
`mixnas.cli` turns words into its arguments and its result into text.
"""
