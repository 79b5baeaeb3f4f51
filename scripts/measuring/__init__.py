"""What benchmarks share: ways that take turns, medians with quartiles, peak memory."""
