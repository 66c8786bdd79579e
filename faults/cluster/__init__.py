"""The chart in a real cluster: installed, harmed, upgraded and scaled under load: `python -m faults.cluster`."""
