"""``morel submit``: a command as a job on a cluster, watched until it ends."""
