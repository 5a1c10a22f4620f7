"""What there is at a vCenter: machines, their places and disks, and which of them a policy means."""
