"""Where bytes come from, and where a restore puts them: ``machines`` is the port, each sub-package a kind of source."""
