"""The form of VMware's disks: what is sent and fetched in one stream, and the text that names extents."""
