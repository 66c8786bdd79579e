"""What every gRPC server and client of ours shares: errors, settings, TLS, health, deadlines, tensors."""
