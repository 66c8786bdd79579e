"""What trainers learn from, batch by batch."""
