"""From YAML files and ``key=value`` to checked values."""
