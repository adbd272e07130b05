"""An evaluation divided into shards: what is measured, who computes, what is left behind."""
