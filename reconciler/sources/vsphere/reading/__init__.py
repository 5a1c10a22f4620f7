"""One machine frozen by a snapshot of ours: made, read, judged and removed."""
