"""The networks and their configurations."""
