"""The services: each a shell around one engine, with gRPC on one side and a queue on the other."""
