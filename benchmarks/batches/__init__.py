"""What batches cost: planning, drawing and finishing them."""
