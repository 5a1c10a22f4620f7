"""Renderers from the machine form: text for a terminal, from the very documents that ``-o json`` prints."""
