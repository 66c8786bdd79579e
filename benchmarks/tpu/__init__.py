"""What the TPU compiler says of every program, for chips that are not there."""
