"""The program of the child: parses a guest's volumes and file systems, and nothing else.

Started as ``python -I -m reconciler.guests.parsers`` by ``guests.conversations`` and by nobody else; no other module
imports it, so that what a hostile volume makes of it never shares memory with anything that matters.
"""
