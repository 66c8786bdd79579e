"""The Compose file on a real engine: started, harmed and restarted under load: `python -m faults.compose`."""
