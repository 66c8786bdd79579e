"""What the proofs of a cluster and of Compose share: load, phases, accounts, and a client's view of the system."""
