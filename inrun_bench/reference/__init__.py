"""Reference values: read from blocks, made, and verified by retraining."""
