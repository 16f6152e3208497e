"""What tools and configs share: reading checkpoints safely, building teachers, launching."""
