"""What a job costs, what breaks first as the system grows, and a simulated fleet of generators."""
