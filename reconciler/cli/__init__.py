"""The ``holdfast`` command. ``commands`` is the table of commands; each command's module is loaded when it is called.

``main`` turns errors into messages and exit codes; ``settings`` finds the estate and the state; ``outputs`` prints
documents as JSON or, through ``reports``, as text.
"""
